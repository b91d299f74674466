/* SPDX-License-Identifier: MIT */
/* Deletes what VMs have left (vm/left.h): a thread that looks every few seconds, and at once when somebody
 * waits for it. Storage that is known to hang is left alone; what cannot be deleted is tried again as long
 * as it stands there. Definitions are not made meanwhile (define.c), so that none can begin to use a path
 * between the question and the deletion; migrations say in their journals what they are about to make. */
#include "agent/inventory.h"
#include "agent/storage.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>

#define PASS_NS (3 * XM_NS_PER_S)
#define WAIT_NS (2 * XM_NS_PER_S) /* a job, or a VM that ends, waits no longer for it */

static char *entries_dir(const struct agent *a)
{
    return xm_printf("%s/left", a->conf.state_dir);
}

/* The next of them that is a VM's (NULL: any's). */
static const char *next_entry(DIR *d, const char *vm)
{
    size_t n = vm ? strlen(vm) : 0;

    for (struct dirent *f; d && (f = readdir(d));) {
        size_t len = strlen(f->d_name);
        if (len > 5 && !strcmp(f->d_name + len - 5, ".json") && !strncmp(f->d_name, vm ? vm : "", n) &&
            (!vm || f->d_name[n] == ':'))
            return f->d_name;
    }
    return NULL;
}

/* ---- is a path used again? ---- */

static bool in_journal(const struct journal *j, const char *path)
{
    json_t *v;
    size_t i;

    json_array_foreach (j->files, i, v) {
        if (!strcmp(journal_path(v), path))
            return true;
    }
    return false;
}

/* The journal is read first: a path that a migration takes stands there before its file is made, which
 * cannot be while this one is there, and until after the definition names it. It also stands there until it
 * is on the list for good. */
static int used_by(struct agent *a, const char *vm, const char *path, struct xm_error *e)
{
    char *dir = vm_state_path(a, vm, NULL);
    struct journal j;
    int r = journal_read(dir, &j, e);

    if (!r && in_journal(&j, path))
        r = xm_error_set(e, EAGAIN, "a migration of VM %s is not over, and names it", vm);
    journal_free(&j);
    free(dir);
    int is = inventory_names_file(a, vm, path, e);
    return is ? is : r;
}

struct leaver {
    struct agent *agent;
    const char *vm; /* that has left it */
};

/* A VM of which it is not known what it has keeps its own files alone from being deleted: another one's path
 * it cannot have taken while that was on the list. */
static int used(void *ctx, const char *path, struct xm_error *e)
{
    const struct leaver *l = ctx;
    json_t *names = inventory_names(l->agent), *v;
    int is = 0;
    size_t i;

    json_array_foreach (names, i, v) {
        const char *vm = json_string_value(v);
        int r = is > 0 ? 0 : used_by(l->agent, vm, path, e);
        if (r > 0)
            xm_log(XM_LOG_WARN, "%s was to be deleted, and is a disk of VM %s: it stays", path, vm);
        if (r > 0 || r == -EAGAIN || (r && !strcmp(vm, l->vm)))
            is = r;
    }
    json_decref(names);
    return is;
}

/* ---- the thread ---- */

static int delete_one(struct agent *a, const char *entry, struct xm_error *e)
{
    json_t *o = read_json(entry, e);
    int r = o ? storage_hangs(xm_json_str(o, "path", ""), e) : -EIO;

    struct leaver l = {a, xm_json_str(o, "vm", "")};
    if (!r && !(r = define_lock(e))) {
        r = left_delete(entry, used, &l, e);
        define_unlock();
    }
    json_decref(o);
    return r;
}

/* Those that stay: by VM, why. */
static json_t *delete_all(struct agent *a)
{
    char *dir = entries_dir(a);
    json_t *stay = json_object();
    DIR *d = opendir(dir);

    for (const char *name; (name = next_entry(d, NULL));) {
        char *entry = xm_printf("%s/%s", dir, name);
        struct xm_error e = {0};
        /* Removed by an operator; or a journal has just put it here, and is about to end. */
        if (delete_one(a, entry, &e) < 0 && e.code != ENOENT && e.code != EAGAIN) {
            xm_log(tidy_said_before(name, e.text) ? XM_LOG_DEBUG : XM_LOG_WARN, "%s; that is tried again",
                   e.text);
            char *vm = xm_printf("%.*s", (int)strcspn(name, ":"), name);
            json_object_set_new(stay, vm, json_string(e.text));
            free(vm);
        }
        free(entry);
    }
    if (d)
        closedir(d);
    free(dir);
    return stay;
}

static void *left_main(void *arg)
{
    struct agent *a = arg;

    agent_lock(a);
    while (!a->ending) {
        unsigned wanted = a->left_wanted;
        agent_unlock(a);
        json_t *stay = delete_all(a);
        agent_lock(a);
        json_decref(a->left);
        a->left = stay;
        a->left_done = wanted;
        pthread_cond_broadcast(&a->changed);
        uint64_t until = xm_now() + PASS_NS;
        while (a->left_wanted == wanted && agent_wait(a, until))
            ;
    }
    agent_unlock(a);
    agent_thread_ends(a);
    return NULL;
}

int left_start(struct agent *a, struct xm_error *e)
{
    return agent_thread(a, left_main, a, e);
}

static bool has_entries(struct agent *a, const char *vm)
{
    char *dir = entries_dir(a);
    DIR *d = opendir(dir);
    bool has = next_entry(d, vm) != NULL;

    if (d)
        closedir(d);
    free(dir);
    return has;
}

char *left_wait(struct agent *a, const char *vm)
{
    if (!has_entries(a, vm))
        return NULL;
    agent_lock(a);
    unsigned mine = ++a->left_wanted;
    pthread_cond_broadcast(&a->changed);
    uint64_t until = xm_now() + WAIT_NS;
    while ((int)(a->left_done - mine) < 0 && agent_wait(a, until))
        ;
    const char *why = (int)(a->left_done - mine) < 0 ? "what it has left is still being deleted"
                                                     : xm_json_str(a->left, vm, NULL);
    char *text = why ? xm_printf("%s", why) : NULL;
    agent_unlock(a);
    return text;
}
