/* SPDX-License-Identifier: MIT */
/* What cppcheck has to know of headers that it passes over. */
#define json_array_foreach(array, index, value)                                                              \
    for ((index) = 0; (index) < json_array_size(array) && ((value) = json_array_get(array, index)); (index)++)
#define json_object_foreach(object, key, value)                                                              \
    for ((key) = first(object); (key) && ((value) = json_object_get(object, key));                           \
         (key) = following(object, key))
