/* SPDX-License-Identifier: MIT */
/* agent/agent.h: xmigrated, the agent of one host. HACKING.md tells its protocols.
 *
 * Threads. The main thread waits for connections (epoll). Each connection has a
 * thread that serves its requests one after the other, and each VM has a thread that listens to its shim's
 * events («watcher»). So a request that waits for a QEMU to boot, for a peer, or for the end of a migration
 * is plain code from top to bottom, where a loop would need a state machine for each verb; there are at most
 * some hundred threads, nearly all asleep, and none of them is on the data path.
 *
 * One lock, agent.lock, protects everything that is shared: the lists, and every field of struct vm and
 * struct job but the constant ones. It is held for short moments only: never over a wait, an fsync, a call
 * to a shim or peer, or a look at a file or process: storage may hang (agent/storage.h). So nobody
 * keeps a pointer to a vm over a wait: they keep its name and look it up again.
 * A job is kept by counting (job_get, job_put).
 *
 * Nothing that matters lives here alone. VMs are found again by their run directories, what is reserved is
 * computed from what stands there (shim.json), ended jobs and owners' records are files in the state
 * directory.
 */
#ifndef XM_AGENT_H
#define XM_AGENT_H

#include "base/base.h"
#include "agent/admission.h"
#include "agent/config.h"
#include "vm/vm.h"
#include <pthread.h>
#include <sys/queue.h>

#define XMIGRATE_VERSION "0.1"

struct agent;

/* ---- VMs (vms.c: the list and the files; shim.c: their shims; watch.c, clean_up.c: when those end) ---- */

enum vm_phase {
    VM_STARTING, /* claimed by a request that is bringing its shim up */
    VM_UP,       /* it has a shim */
    VM_HELD,     /* claimed by a request that changes its definition: it does not run */
    VM_ENDING,   /* claimed by who takes away what is left of it: nobody else does, nor has its name */
};

struct vm {
    TAILQ_ENTRY(vm) link;
    struct agent *agent;
    char name[VM_NAME_MAX + 1]; /* constant */
    char *dir;                  /* constant: its run directory */
    uint64_t claimed;           /* constant: xm_now(); tells it from a later one of the same name */
    enum vm_phase phase;
    json_t *spec; /* replaced as a whole */
    uint64_t memory;
    char job[16];     /* the job that holds it; "": none; "-": one that is about to be made */
    bool job_assumed; /* its shim could not be asked whether it works on that job */
    json_t
        *moving;  /* while its disks move on this host: {"datastore", "reserve": [{path, used}]}; else NULL */
    int watch_fd; /* its watcher's socket, -1 */
    bool watched; /* its watcher listens to its shim, or gives it another one */
    unsigned revived;    /* how often its shim was started anew since: */
    uint64_t revived_at; /* xm_now() */
    json_t *last; /* of a move by which it goes from here, or in which it ended: the last event; else NULL */
    uint64_t last_at; /* xm_now() when that came */
    /* It is expected, by a migration: */
    json_t *incoming; /* what stands in shim.json; NULL when the VM is this host's own */
};

/* Under the lock: */
struct vm *vm_find(struct agent *, const char *name);
struct vm *vm_find_claimed(struct agent *, const char *name, uint64_t claimed); /* it, and not one after it */
/* Claims the name (phase VM_STARTING), NULL with a sentence when it is taken. spec: a new reference is kept.
 */
struct vm *vm_claim(struct agent *, const char *name, json_t *spec, struct xm_error *);
void vm_forget(struct vm *); /* out of the list, freed */
/* usage: vms_usage's, taken a moment ago; a VM that has come since has used nothing yet. */
uint64_t vms_memory_promised(struct agent *, const json_t *usage);
/* Of a datastore: to migrations, and not written yet; but (may be NULL): not that VM's. */
uint64_t vms_space_promised(struct agent *, const char *datastore, const char *but, const json_t *usage);

/* Without the lock: */
/* What VMs have taken up of the memory and, with `space`, of the space that is promised to them; asks
 * processes and storage, which may take its time. A new reference. */
json_t *vms_usage(struct agent *, bool space);
int vms_adopt(
    struct agent *); /* at the start: finds the shims that are there, cleans up after those that are not */
/* Writes shim.json and runs the shim until it says that the VM runs (or waits for its migration). On failure
 * the sentence is the shim's; one that does not come up in time is ended. */
int vm_spawn(struct agent *, const char *name, json_t *spec, uint64_t epoch, json_t *incoming,
             struct xm_error *);
/* It has a shim now: starts its watcher. Where no thread can be had vm_watch_all tries it again (tidy.c). */
void vm_watch(struct agent *, const char *name);
void vm_watch_all(struct agent *);
/* An incoming VM that is on its way out (its shim does not answer any more) is waited for. True: it has gone.
 */
bool vm_wait_ending(struct agent *, const char *name);
/* One that is just being taken away is waited for. */
void vm_wait_ended(struct agent *, const char *name);
/* Ends what is left of a VM here that is another host's, and has no shim. False: it has one, or is claimed by
 * a request, or does not end. */
bool vm_end_orphan(struct agent *, const char *name);
/* Ends what is left of the VM that was claimed then. False: its QEMU is left, or has another shim, and with
 * it the VM in the list. */
bool vm_end_claimed(struct agent *, const char *name, uint64_t claimed);
/* No shim any more: takes away what is left of the VM here. False: its QEMU is left, which nobody may end
 * before it is known whose the VM is. */
bool vm_clean_up(struct agent *, const char *name);
/* The process that FILE (shim.pid, qemu.pid) names, if it is still the VM's; 0 when not. */
pid_t vm_process(struct agent *, const char *name, const char *file);
/* Kills it, if it is that one, and waits 5 s for its end. By a descriptor that is known to be of the VM's
 * process: a number may be somebody else's by then. */
void vm_kill(struct agent *, const char *name, const char *file, pid_t pid);
/* Its QEMU has started the guest; false: it took the guest over from another host, or it is not known. */
bool vm_booted_here(struct agent *, const char *name);
/* One request to the shim; the reference `request` is stolen. The answer (ok is true) or NULL with a
 * sentence. In two steps for who has to know that it is the shim that was there at a certain time: a
 * descriptor or -errno, which the second one closes. */
int shim_connect(struct agent *, const char *name, struct xm_error *);
json_t *shim_call_on(int fd, const char *name, json_t *request, int pass_fd, uint64_t timeout_ns,
                     struct xm_error *);
/* Ends the incoming migration of that source and job. -errno with a sentence: another one has come since, or
 * it may own the VM by now. */
int shim_abort_incoming(struct agent *, const char *vm, const char *source, const char *job,
                        uint64_t timeout_ns, struct xm_error *);
json_t *shim_call(struct agent *, const char *name, json_t *request, int pass_fd, uint64_t timeout_ns,
                  struct xm_error *);
void vm_remove_run_dir(struct agent *, const char *name); /* keeps the logs, in state_dir/logs */
void logs_keep(struct agent *, const char *name);         /* logs.c: of one that has ended */
void vm_remove_left(struct agent *, const char *name);    /* tries it again, where no VM has it */
/* A job may have ended while no agent heard it: its last event stands in a file. */
void vm_take_result(struct agent *, const char *name);
char *vm_path(const struct agent *, const char *name, const char *file); /* in the run directory */
char *vm_state_path(const struct agent *, const char *name,
                    const char *file); /* in the state directory; file NULL: itself */
/* This host's record says that it owns the VM. *epoch (may be NULL): the record's, 0 without one. */
bool vm_owned(struct agent *, const char *name, uint64_t *epoch);
int owner_read(struct agent *, const char *name, struct owner_record *, struct xm_error *);
int owner_write(struct agent *, const char *name, const struct owner_record *, struct xm_error *);
int write_json(const char *path, const json_t *, struct xm_error *);      /* atomically, durable */
json_t *read_json(const char *path, struct xm_error *);                   /* an object, or NULL */
json_t *read_vm_json(struct agent *, const char *name, const char *file); /* likewise, in the run directory */

/* ---- jobs (jobs.c) ---- */

#define JOB_EVENTS 512 /* kept in memory for who watches late; the first («job») and the last always */

struct job {
    TAILQ_ENTRY(job) link;
    char id[16];   /* constant */
    json_t *about; /* job, mode, vm, source, destination…; "state": running, done, failed */
    json_t *event[JOB_EVENTS];
    unsigned events; /* how many there were; job_event_at says where each is */
    bool over;
    bool storage;       /* counts against the limit of migrations with disks */
    const char *barred; /* why no shim may get it any more (its user's abort, its shim's death); NULL */
    bool launched;      /* a shim works on it */
    int exit;           /* when over: the exit status of who waits for it */
    char error[400];    /* when over and failed */
    unsigned refs;
};

int jobs_load(struct agent *);    /* at the start, before the VMs are adopted */
void jobs_settle(struct agent *); /* after it: ends those that no shim works on any more */
/* A new job, recorded durably, with its first event. `about` is stolen. NULL with a sentence. */
struct job *job_new(struct agent *, json_t *about, bool storage, struct xm_error *);
struct job *job_get(struct agent *, const char *id); /* NULL: unknown, or too long ago */
json_t *no_such_job(const char *id); /* the refusal; list shows those that come as HOST:NUMBER */
void job_put(struct agent *, struct job *);
void job_event(struct agent *, struct job *, json_t *steals); /* adds job; «done» and «failed» end it */
void job_fail(struct agent *, struct job *, int exit, const char *why);
const json_t *job_event_at(const struct job *, unsigned n); /* under the lock; number n, which is kept */
json_t *job_last_event(const struct job *);                 /* under the lock; a copy, or NULL */
json_t *jobs_list(struct agent *);
void jobs_free(struct agent *);
unsigned jobs_running(struct agent *, bool storage_only); /* under the lock */
void jobs_find(struct agent *, const char *vm,
               char id[16]); /* under the lock; one of this VM that is not over; or "" */
/* No shim works on it, after all: ends it by what the record says. */
void job_lost(struct agent *, const char *id);

/* ---- the agent ---- */

struct conn;

struct agent {
    struct config conf; /* constant */
    int lock_fd;
    unsigned port; /* that it listens on; constant after the start */

    pthread_mutex_t lock;
    pthread_cond_t changed; /* a job has a new event, a VM came or went, a thread ended, the agent ends */
    TAILQ_HEAD(, vm) vms;
    TAILQ_HEAD(, job) jobs; /* newest last */
    LIST_HEAD(, conn) conns;
    LIST_HEAD(, claim) claims; /* claims.c: VMs whose last hand-off is being settled */
    LIST_HEAD(, tidy) tidies;  /* tidy.c: VMs that it looks after, or waits for its turn with */
    unsigned threads, unix_conns, tcp_conns;
    unsigned next_job;
    unsigned pending, pending_storage; /* moves that were let in and have no job yet */
    bool ending;
    bool rebalances;              /* somebody does */
    char boot[LIFE_BOOT_MAX + 1]; /* which boot of the host this is; constant after the start */
    bool autostart_due;           /* ... and nobody has started VMs by themselves in it yet; likewise */
    json_t *left; /* by VM, why something that it has left cannot be deleted now; NULL: not looked yet */
    unsigned left_wanted, left_done; /* passes of left.c: asked for, and how many of those are over */
    json_t *autostart_waiting;       /* ... but for these, names, that others may run; NULL: none; likewise */
};

static inline void agent_lock(struct agent *a)
{
    pthread_mutex_lock(&a->lock);
}
static inline void agent_unlock(struct agent *a)
{
    pthread_mutex_unlock(&a->lock);
}
/* The program: everything from the start to the end. Takes the configuration's contents over. */
int agent_run(struct config *, struct xm_error *);
/* Starts a detached thread that agent_free waits for. */
int agent_thread(struct agent *, void *(*run)(void *), void *arg, struct xm_error *);
void agent_thread_ends(struct agent *); /* the last thing such a thread does */
/* Under the lock; false when the deadline (xm_now() scale) has passed or the agent ends. */
bool agent_wait(struct agent *, uint64_t deadline);
bool agent_pause(struct agent *, uint64_t ns); /* not under the lock. True, and at once: the agent ends */

/* ---- connections and verbs (conn.c, verbs.c) ---- */

struct conn {
    LIST_ENTRY(conn) link;
    struct agent *agent;
    struct xm_jsonl js;
    bool peer;           /* came over TCP, from another agent */
    struct address from; /* of a peer */
    bool dead;           /* it does not read any more: events are not sent */
    /* Under the lock. When it began to wait for its first line or next message; 0: it is being served. */
    uint64_t idle_since;
    bool dropped; /* for a newer one; its thread is about to end */
};

/* A verb's handler: sends events by conn_event and returns the last answer (ok_answer, refusal). Without the
 * lock held. */
typedef json_t *verb_handler(struct conn *, const json_t *request);

void conn_accept(struct agent *, int listen_fd, bool peer);
void conn_event(struct conn *, json_t *steals);
void conn_keep_alive(int fd); /* TCP: an other side that is silently gone is noticed within 25 s */
json_t *verb_run(struct conn *, const json_t *request);
json_t *ok_answer(void); /* {"ok":true} */
json_t *ok_text(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
json_t *refusal(int exit, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Sends the job's events from the first one kept, until it is over; the last answer then. Takes over the
 * job's reference. */
json_t *job_stream(struct conn *, struct job *);

enum { EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_REFUSED = 3, EXIT_UNKNOWN = 4 };

verb_handler verb_start, verb_stop;                            /* start.c */
verb_handler verb_list, verb_show, verb_console, verb_log;     /* show.c */
verb_handler verb_define, verb_dump;                           /* define.c */
verb_handler verb_undefine;                                    /* undefine.c */
verb_handler verb_check, verb_move, verb_abort, verb_set;      /* move.c */
verb_handler verb_recover, verb_peer_owner, verb_peer_recover; /* recover.c */
/* settle.c: what is open of a VM's last hand-off is brought to an end, if it can be: by what the peer's
 * record says, or, with peer_is_dead, by the operator's word that this peer is gone for good. The answer of
 * `recover`. */
json_t *settle(struct agent *, const char *vm, bool peer_is_dead, uint64_t patience_ns);
/* claims.c: in two steps: at most one thread works on what is open of a VM, each in its turn. False:
 * another one still does. */
bool settle_claim(struct agent *, const char *vm, uint64_t patience_ns);
void settle_release(struct agent *, const char *vm);
/* yes: the VM begins no migration from here on, nor ends one, and is not started. False: it is in one, or
 * just comes or goes, or is being defined. no: it may again. Who holds it has claimed it. */
bool settle_hold(struct agent *, const char *vm, bool yes);
/* Under the lock, for who is about to do one of these: waits for who holds it. False: it still is held. */
bool settle_let_go(struct agent *, const char *vm);
/* An operator has said that a peer is gone for good, and the VM may be taken in a moment: who asks whose
 * it is (the peer, which is not) must not act on what was so before. Who says so has claimed it. */
void settle_word(struct agent *, const char *vm, bool yes);
bool settle_by_word(struct agent *, const char *vm);
json_t *settle_claimed(struct agent *, const char *vm, bool peer_is_dead);
/* The record says that nothing of the VM is needed here: its shim and QEMU end, then what the journal names
 * goes. */
int settle_end_here(struct agent *, const char *vm, struct xm_error *);
/* How long an operator waits for another thread that settles the VM; a peer whose thread may have claimed
 * the VM there; and one that has not, and has a migration to prepare. */
#define SETTLE_PATIENCE         (65 * XM_NS_PER_S)
#define SETTLE_PEER_PATIENCE    (2 * XM_NS_PER_S)
#define SETTLE_PREPARE_PATIENCE (20 * XM_NS_PER_S)
/* tidy.c: does so by itself, every few seconds. */
int tidy_start(struct agent *, struct xm_error *);
/* A probe: a file by which a destination finds out whether it reaches the storage that a source's disk lies
 * in (reasons.c, asked.c). Its name has 16 hexadecimal digits behind this, and it consists of 32: 16 at
 * random, and 16 that probe_sign makes of them and of who shows it to whom. Who was shown one cannot show
 * it to a third host, nor back, as its own. */
#define PROBE_PREFIX ".xmigrate-probe-"
void probe_sign(char content[33], const char *source, const char *destination);
/* The last sentence of that (a VM, say) was the same. A collision costs a line. */
bool tidy_said_before(const char *of, const char *text);
/* left.c: deletes what VMs have left (vm/left.h). left_wait: has it done now what there is of this VM, for a
 * moment at most; why some of it stays, malloc'ed, or NULL. */
int left_start(struct agent *, struct xm_error *);
char *left_wait(struct agent *, const char *vm);
void leftovers_at_start(struct agent *); /* leftovers.c; before there are threads */
int leftovers_start(struct agent *, struct xm_error *);
/* A VM that is expected here: ended, when no link has come and its source does not know of the migration. */
void tidy_expected(struct agent *, const char *vm);
verb_handler verb_rebalance, verb_peer_datastores;               /* rebalance.c */
verb_handler verb_jobs, verb_watch;                              /* job_verbs.c */
verb_handler verb_peer_hello, verb_peer_check, verb_peer_cancel; /* peer.c */
verb_handler verb_peer_prepare;                                  /* prepare.c */

/* start.c: starts a VM that this host owns, from its recorded spec. The answer. */
json_t *start_again(struct agent *, const char *name);
/* show.c: why there is no such VM that runs here, as the refusal. */
json_t *not_running(struct agent *, const char *name, int exit);

/* define.c: puts the definition into the inventory: its disks are made, spec and record written. The name is
 * claimed. define_undo takes all of it back where it was new. */
struct defined {
    bool fresh;     /* there was no record before */
    uint64_t epoch; /* the record's */
    json_t *created;
};
/* Which epoch the definition has, and whether this host may have one at all: not when it gave the VM away. */
int define_allowed(struct agent *, const char *name, struct defined *, struct xm_error *);
/* The same, of a VM that is new here, as the peers that answer know: none of them has one of this name.
 * namesake.c. Waits for peers. */
int define_namesake(struct agent *, const char *name, struct xm_error *);
int define_spec(struct agent *, struct vm_spec *, json_t *spec, struct defined *, struct xm_error *);
void define_undo(struct agent *, const char *name, const struct defined *);
/* "VM web1 is defined on hosta", and which of its disks are new and empty. done: "is defined on hosta". */
json_t *define_text(const struct vm_spec *, const struct defined *, const char *done);
/* No definition is being made. -EBUSY: one is, and does not come to an end. */
int define_lock(struct xm_error *);
void define_unlock(void);
/* The name is claimed while the VM does not run. NULL, or why not. */
json_t *define_hold(struct agent *, const char *name, json_t *spec);
void define_let_go(struct agent *, const char *name);
/* Sets what is not the running VM's, but its definition's. */
json_t *define_autostart(struct agent *, const char *name, bool yes);

#define LINK_TOKEN_BYTES 32 /* twice as many hexadecimal digits */
/* A link's socket has come with this token: hands it to the shim that waits for it. peer.c. Takes over
 * fd. */
void link_arrived(struct agent *, const struct address *from, const char *token, const char *name, int fd);
bool link_welcome(struct agent *, const struct address *from); /* some migration expects links from there */

/* admit.c: gathers what this host is, and judges a request by it (agent/admission.h). */
struct gathered {
    struct host_facts facts; /* points into what follows, and into the configuration */
    struct fact_datastore datastore[CONFIG_MANY];
    struct fact_link link[CONFIG_MANY];
    struct xm_error tracking, kvm, qemu, no_cpu, no_machine;
    char *wrong[CONFIG_MANY]; /* datastores' */
    json_t *usage;            /* vms_usage's */
    char machine_like[64];
    json_t *cpu;
};
void gathered_free(struct gathered *);
/* Without the lock: asks kernel, files and QEMU. strict: the request came from a peer. */
void gather(struct agent *, const struct admission_request *, bool strict, struct gathered *);
/* Under the lock: adds what is reserved and running, judges. Appends to reasons; returns how many.
 * *datastore: index in the configuration, -1: none. */
unsigned admit_judge(struct agent *, const struct admission_request *, struct gathered *, json_t *reasons,
                     int *datastore);
/* resolve.c: makes a spec as the user wrote it whole, for this host: accel, cpu, machine's full name,
 * disks' paths and sizes. Refused when it contradicts the inventory, or a disk that the inventory has is
 * not there. note (may be NULL): a sentence for the user when the VM will run otherwise than he may
 * expect. */
int resolve_spec(struct agent *, struct vm_spec *, struct xm_error *note, struct xm_error *);
/* The refusal: nothing is made in the place of a disk that the record has. */
int disk_missing(struct agent *, const struct vm_spec *, const struct vm_disk *, struct xm_error *);
uint64_t
disk_used(const struct vm_disk *);         /* bytes that it holds; its size where that is all that is known */
uint64_t disk_file_size(const char *path); /* of a file or block device; 0: it cannot be told */
/* Makes the sparse files that the spec names and that are not there yet, and the firmware's variables; their
 * paths are appended to `created`. known: the recorded spec, NULL when there is none: its disks are not made
 * anew. */
int create_missing(struct agent *, struct vm_spec *, const json_t *known, json_t *created, struct xm_error *);
/* Changes the spec to new files in the datastore, under names that are not taken now; they are appended to
 * `planned`. */
void plan_disks(struct agent *, struct vm_spec *, int datastore, json_t *planned);
/* Makes them, sparse. -EEXIST: somebody else has taken a name meanwhile. What was made is in `created`, also
 * on failure. */
int create_disks(const struct vm_spec *, json_t *created, struct xm_error *);
/* A path in the datastore that is not taken now; malloc'ed. */
char *free_disk_path(struct agent *, int datastore, const char *vm, const char *disk);
void delete_created(const json_t *created);
char *reasons_text(const json_t *reasons); /* "a; b; c", malloc'ed */

/* call.c: one request to another agent. The answer (ok true), or NULL with a sentence (EREMOTEIO: the
 * peer's); *exit_status as the peer said, *reasons (a new reference) when it gave some. local: filled with
 * the address that the connection had here, when not NULL. timeout_ns: for the answer, and at most 5 s
 * before it for the connection. */
json_t *peer_call_agent(struct agent *, const struct conf_peer *, json_t *steals, uint64_t timeout_ns,
                        int *exit_status, json_t **reasons, struct address_text *local, struct xm_error *);

#endif
