# SPDX-License-Identifier: MIT
# xmigrate: see README.md for what to run, HACKING.md for how the code is laid out.
#
#   make              build everything into build/
#   make check        all tests (as root); `make unit` only those without a guest
#   make demo         two hosts, one guest, one migration (as root)
#   make SAN=address,undefined check      the same under sanitizers (SAN=thread likewise)

CC      ?= gcc
SAN     ?=
comma   := ,
B       := build$(if $(SAN),/san-$(subst $(comma),-,$(SAN)))
PKGS    := liburing liblz4 libxxhash jansson inih openssl
WARN    := -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes -Wno-sign-conversion -Werror
OPT     := $(if $(SAN),-O1 -fno-omit-frame-pointer -fsanitize=$(SAN),-O2)
# gcc says that it does not follow fences there; ours order memory that a guest shares, not threads.
OPT     += $(if $(findstring thread,$(SAN)),$(if $(findstring clang,$(CC)),,-Wno-tsan))
DEBUG   ?= -g
CFLAGS  += -std=gnu11 $(DEBUG) $(OPT) $(WARN) -D_GNU_SOURCE -I. -MMD -MP -pthread
CFLAGS  += $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
export TSAN_OPTIONS ?= suppressions=$(CURDIR)/tests/tsan.supp
LDFLAGS += -pthread $(if $(SAN),-fsanitize=$(SAN))
LDLIBS  += $(shell pkg-config --libs $(PKGS) 2>/dev/null) -laio

# Folders, lowest first: a folder may include only those before it (tests/layers.sh holds it to that).
FOLDERS := base net blkcopy mirror memxfer vm probe machine migrate shim agent cli
# A folder's *.c make its library, main_NAME.c makes the program NAME (- for _).
lib_src  = $(filter-out $(1)/main_%.c,$(wildcard $(1)/*.c))
reverse  = $(if $(1),$(call reverse,$(wordlist 2,99,$(1))) $(firstword $(1)))
LIBS    := $(patsubst %,$(B)/lib%.a,$(call reverse,$(foreach f,$(FOLDERS),$(if $(call lib_src,$(f)),$(f)))))
MAINS   := $(wildcard $(FOLDERS:%=%/main_*.c))
prog     = $(B)/$(subst _,-,$(patsubst main_%.c,%,$(notdir $(1))))
PROGS   := $(foreach m,$(MAINS),$(call prog,$(m)))

UNIT    := $(patsubst tests/unit/%.c,$(B)/tests/unit/%,$(filter-out tests/unit/lib_%.c,$(wildcard tests/unit/*.c)))
UNITLIB := $(patsubst %.c,$(B)/%.o,$(wildcard tests/unit/lib_*.c) tests/progress.c tests/port.c)

# make V=1 shows the commands.
Q       := $(if $(V),,@)
say      = $(if $(V),,@echo '  $(1)')

.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: all progs tests unit unit-build
all: progs tests
progs: $(PROGS)

$(B)/%.o: %.c
	@mkdir -p $(@D)
	$(call say,CC $<)
	$(Q)$(CC) $(CFLAGS) -c -o $@ $<

define folder_lib
$(B)/lib$(1).a: $(patsubst %.c,$(B)/%.o,$(call lib_src,$(1)))
	@rm -f $$@; ar rcs $$@ $$^
endef
$(foreach f,$(FOLDERS),$(eval $(call folder_lib,$(f))))

define program
$(call prog,$(1)): $(patsubst %.c,$(B)/%.o,$(1)) $(LIBS)
	$$(call say,LD $$@)
	$$(Q)$$(CC) $$(LDFLAGS) -o $$@ $$^ $$(LDLIBS)
endef
$(foreach m,$(MAINS),$(eval $(call program,$(m))))

tests: $(UNIT)
$(B)/tests/unit/%: $(B)/tests/unit/%.o $(UNITLIB) $(LIBS)
	$(call say,LD $@)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ -lcmocka $(LDLIBS)

# Runs them, a few at a time, with limits that count progress.
$(B)/tests/run: $(B)/tests/run.o $(B)/tests/progress.o
	$(call say,LD $@)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^

$(B)/tests/unit/tests_run: | $(B)/tests/run

# One test program: make run-unit-NAME
run-unit-%: $(B)/tests/unit/%
	$<
# UNIT_SKIP: names of those to leave out.
WANTED := $(filter-out $(UNIT_SKIP:%=$(B)/tests/unit/%),$(sort $(UNIT)))
unit-build: $(WANTED) $(B)/tests/run
unit: unit-build
	@$(B)/tests/run -j 2 $(WANTED)

-include $(wildcard Makefile.sim Makefile.tests Makefile.bench Makefile.fuzz)
# build/debian13 is another system's build (tests/debian13.sh).
-include $(shell find $(B) -path $(B)/debian13 -prune -o -name '*.d' -print 2>/dev/null)

PREFIX  ?= /usr/local
.PHONY: install
install: progs
	install -d $(DESTDIR)$(PREFIX)/sbin $(DESTDIR)$(PREFIX)/bin $(DESTDIR)/etc/xmigrate \
	  $(DESTDIR)$(PREFIX)/lib/systemd/system
	install -m 755 $(B)/xmigrated $(B)/xmigrate-shim $(DESTDIR)$(PREFIX)/sbin
	install -m 755 $(B)/xmigrate $(DESTDIR)$(PREFIX)/bin
	for s in 1 5 7 8; do install -d $(DESTDIR)$(PREFIX)/share/man/man$$s; \
	  install -m 644 man/*.$$s $(DESTDIR)$(PREFIX)/share/man/man$$s; done
	# The pages are found by the names of what they tell of, too.
	echo '.so man5/xmigrate.conf.5' >$(DESTDIR)$(PREFIX)/share/man/man5/xmigrated.conf.5
	echo '.so man8/xmigrated.8' >$(DESTDIR)$(PREFIX)/share/man/man8/xmigrate-shim.8
	sed 's|@PREFIX@|$(PREFIX)|' etc/xmigrated.service >$(B)/xmigrated.service
	install -m 644 $(B)/xmigrated.service $(DESTDIR)$(PREFIX)/lib/systemd/system
	install -m 644 etc/xmigrated.conf.example $(DESTDIR)/etc/xmigrate
	install -m 644 etc/cron.d/xmigrate $(DESTDIR)/etc/xmigrate/cron.example

.PHONY: format lint layers clean
format:
	clang-format -i $(shell git ls-files '*.c' '*.h')
layers:
	@tests/layers.sh
# cppcheck passes over the system's headers; two of them it has to know.
QUEUE_H = $(shell printf '%binclude <sys/queue.h>' '\043' | $(CC) -E -H - 2>&1 >/dev/null | sed -n 's|^[.] \(.*/sys/queue.h\)|\1|p')
lint: layers
	@clang-format --dry-run -Werror $(shell git ls-files '*.c' '*.h')
	@cppcheck --quiet --std=c11 --enable=warning,portability,performance --inline-suppr --error-exitcode=1 \
	  --include=$(QUEUE_H) --include=tests/lint/cppcheck.h --suppress=missingIncludeSystem \
	  --suppress=normalCheckLevelMaxBranches -D_GNU_SOURCE -I. $(FOLDERS)
	@clang-tidy --quiet $(shell git ls-files $(FOLDERS:%='%/*.c')) -- -std=gnu11 -D_GNU_SOURCE -I. 2>/dev/null
clean:
	rm -rf build
