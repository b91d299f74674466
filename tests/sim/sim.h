/* SPDX-License-Identifier: MIT */
/* tests/sim: two hosts, or three, in one process, with the programs themselves on a simulated kernel.
 *
 * Approach chosen. The objects of the product are linked as they are (agent/, shim/, migrate/, machine/,
 * vm/, base/): the records' slots, the journal, the verdicts, and also in which order who writes what,
 * asks whom and deletes what. Beneath them the linker's --wrap (Makefile.sim) puts a world of our own:
 * threads are coroutines, time is virtual, files have a cached and a durable side, sockets have delays
 * and partitions, processes can be killed at each step, QEMU is a small model that speaks QMP. What moves
 * bytes (links, mirror, pre-copy) is reduced to what a hand-off may see of it: it takes time, it fails,
 * and the copy at the destination is whole or half. One seed is one run, and always the same one.
 *
 * The other one considered: move every decision into pure functions of vm/, and have a simulator call
 * those. It would be faster and could keep a set of visited states; but who calls them in which order,
 * and what is durable in between, would be the simulator's own copy, and that is where the faults were.
 * The pure part is searched exhaustively already (tests/unit/vm_handoff.c, vm_verdict.c); here, faults at
 * every step of a whole move are.
 *
 *   task.c     coroutines, virtual time                pthread.c     clocks and pthreads on top of them
 *   memory.c   malloc of one run                       descriptor.c  descriptors, events, signals, poll
 *   files.c    a host's files, power cuts              file_calls.c  the system calls on them
 *   socket.c   sockets, JSON over them                 process.c     hosts, agents, shims, kill, power cuts
 *   qemu.c     QEMU and the guest                      links.c       links, calls, device state
 *   disks.c    disks, their copies and locks           ram.c         rounds of memory
 *   facts.c    what a host is; logs; fault points      fault.c       what goes wrong, when
 *   check.c    what must hold                          operator.c    people at their consoles
 *   main.c     seeds, every step in turn               sins.c        rules broken on purpose
 *
 * Not modelled: disks that both hosts reach, autostart by several VMs, NVRAM, full
 * file systems beyond a write that fails. A file that was fsynced keeps its name after a power cut, as on
 * ext4 and XFS. */
#ifndef XM_SIM_H
#define XM_SIM_H

#include "base/base.h"
#include "vm/vm.h"

#include <stdarg.h>
#include <sys/types.h>

#define MS    XM_NS_PER_MS
#define SEC   XM_NS_PER_S
#define NEVER UINT64_MAX
#define HOSTS 3 /* w.hosts of them are there: two, or a third that is a peer of both */
#define VM    "web1"

struct host;
struct proc;
struct task;
struct obj;
struct inode;

/* ---- memory.c ---- */

void memory_reset(void); /* everything that a run has allocated is gone */
void *sim_alloc(size_t);

/* ---- chance ---- */

uint64_t sim_random(void);
uint64_t below(uint64_t n);
uint64_t between(uint64_t low, uint64_t high);
bool chance(unsigned per_mille);

/* ---- task.c ---- */

typedef void event_fn(void *arg);
uint64_t sim_time(void);
void at(uint64_t when, event_fn *, void *arg); /* a world's event: on no task */
void after(uint64_t ns, event_fn *, void *arg);
void tasks_reset(void);
/* Runs events until `until`, or until `over` says so. False: nothing is left to happen. */
bool tasks_run(uint64_t until, bool (*over)(void));
struct task *task_new(struct proc *, void *(*run)(void *), void *arg);
struct task *task_current(void); /* NULL: the world itself */
/* It has returned (then *result, unless that is NULL, is what it returned), or its process has ended. */
bool task_done(const struct task *, void **result);
struct proc *proc_current(void);
/* Until the deadline, or somebody wakes it for `on`. True: woken. */
bool task_wait(const void *on, uint64_t deadline);
void task_sleep(uint64_t ns);
void task_wake(const void *on); /* all that wait for it */
void task_wake_one(struct task *);
void tasks_drop(struct proc *); /* they never run again; does not return when the current one is among them */
void tasks_freeze(struct proc *, bool frozen);
/* pthread.c: tasks that wait for a mutex; which run of the world it is. */
extern unsigned mutex_waiters, run_number;

/* ---- descriptor.c ---- */

enum kind { FD_FILE, FD_SOCKET, FD_LISTEN, FD_EVENT, FD_PID, FD_SIGNAL, FD_DIR };

struct obj {
    enum kind kind;
    int refs;
    bool eof; /* SOCKET: the other end has closed; LISTEN: closed */
    /* FILE, DIR */
    struct inode *inode;
    int flags;
    size_t pos;
    char path[160];
    /* SOCKET */
    struct obj *peer;  /* NULL once that is closed */
    struct proc *proc; /* whose it is; LISTEN, PID, SIGNAL too */
    struct host *host, *far;
    int server_fd; /* of an end that waits to be served */
    struct message *first, **last;
    uint64_t last_arrival; /* nothing overtakes within a connection */
    bool network;
    struct xm_links *links; /* a bundle has taken it over */
    struct proc *qemu;      /* the other end is this one's monitor */
    bool client;
    /* LISTEN */
    struct obj *pending[16];
    unsigned pendings;
    /* EVENT */
    uint64_t count;
};

struct message {
    struct message *next;
    json_t *json;
    struct obj *passed;
};

#define FD_FIRST 100
void fds_reset(void);
int fd_new(struct obj *, struct proc *);
struct obj *fd_obj(int fd); /* NULL: none of ours, or closed */
int fds_end(void);          /* all there ever were are below it */
void fds_close_all(struct proc *);
struct obj *obj_new(enum kind);
void obj_put(struct obj *);
void obj_changed(struct obj *);
int __wrap_close(int fd);

/* ---- socket.c ---- */

void socket_closed(struct obj *); /* nobody has this end open any more: the other end is told */
struct obj *socket_pair(struct proc *client, struct proc *server,
                        bool network); /* the client's end; ->peer */
void socket_send(struct obj *from, json_t *steals, struct obj *passed);
void socket_eof(struct obj *); /* it finds the other end closed */
void sockets_of_network_changed(void);

/* ---- files.c (file_calls.c: the system calls) ---- */

struct inode {
    bool dir;
    char *data, *durable;
    size_t len, durable_len;
    bool synced;
    uint64_t size; /* of a disk */
    /* A disk: which of the guest's writes are in it; HALF: some chunks of it. */
    uint64_t version, durable_version;
    struct proc *user; /* who has it open as a disk */
    bool named;        /* a name leads to it */
};
#define HALF UINT64_MAX

void files_reset(void);
struct inode *file_find(struct host *, const char *path);
void file_put(struct host *, const char *path, const void *data, size_t len); /* at once, durable */
struct inode *file_put_disk(struct host *, const char *path, uint64_t size, uint64_t version);
void file_make_dir(struct host *, const char *path);
void files_power_cut(struct host *);
void files_as(struct host *); /* whose files the world itself looks at; NULL: whose process runs */
void file_flushed(struct host *, struct inode *);
extern unsigned long records_turn[HOSTS]; /* changes with each owner record */
/* Calls for each file whose path begins so. */
void files_each(struct host *, const char *prefix,
                void (*fn)(struct host *, const char *path, struct inode *, void *), void *arg);

/* ---- process.c ---- */

enum proc_kind { AGENT, SHIM, QEMU, CLI };

struct qemu_model {
    bool running, incoming, loaded;
    char status[20];      /* of its migration */
    uint64_t memory;      /* the last guest write that its guest knows of */
    struct obj *monitor;  /* its own end of the monitor's connection */
    struct xm_links *to;  /* its migration goes there */
    unsigned turn;        /* of its migrations: what belongs to an older one is not acted on */
    unsigned asked, done; /* commands that came while it was stopped */
    bool attached;
};

struct proc {
    enum proc_kind kind;
    struct host *host;
    pid_t pid;
    bool alive, stopped, term; /* stopped: SIGSTOP; term: SIGTERM has come */
    char cmdline[400];
    size_t cmdline_len;
    struct obj *signals; /* SHIM */
    struct agent *agent;
    struct shim *shim;
    char *config, *said; /* SHIM: shim.json; what it tells who started it, NULL: nothing yet */
    struct qemu_model *qemu;
    struct proc *next;
};

struct host {
    int number;
    const char *name;
    char address[16], state_dir[16], run_dir[16], store[16], store2[16]; /* datastores ds and ds2 */
    bool on;
    struct proc *agent;
    unsigned boots;
    bool listening;
    bool returned; /* it was declared dead, came back, and has not come to rest since */
};

struct world {
    uint64_t seed;
    struct host host[HOSTS];
    int hosts;
    struct proc *procs;
    bool partitioned;
    int alone;           /* of three hosts the one that is cut off then */
    uint64_t busy_until; /* a fault that takes longer: the script does not end before */
    bool ending;         /* the world is healed: nothing new goes wrong */
    bool failed;
    char violation[600];
    /* The guest. */
    uint64_t version;      /* of its last write that was acknowledged */
    struct host *ran_last; /* where it was let run last */
    bool word_given;       /* an operator's word counted more than a record */
    bool may_be_stopped;   /* somebody, or something, has stopped it */
    bool begun;            /* it runs for the first time: from now on things may go wrong */
    /* How this run is */
    unsigned preempt, slow, duplicate, write_errors, read_errors, refusals, refuse_run, late; /* per mille */
    uint64_t grace; /* beyond the downtime budget */
    bool autostart;
    bool full; /* several commands, and a move at the end */
    unsigned long points, points_of_script;
    unsigned long late_at; /* the point at which a switch-over that takes too long began; 0: none has */
    unsigned jobs_done, jobs_failed;
    bool verbose;
};
extern struct world w;

struct host *other_host(const struct host *); /* of two others any */
struct proc *proc_new(enum proc_kind, struct host *);
struct proc *proc_of(pid_t);
struct proc *proc_find(struct host *, enum proc_kind); /* the living one; NULL */
void proc_kill(struct proc *, const char *how);        /* SIGKILL */
void proc_term(struct proc *);
void proc_stop(struct proc *, bool stop);
void proc_exit(void) __attribute__((noreturn)); /* the current one */
void host_on(struct host *);
void host_cut(struct host *);
void agent_begin(struct host *);
void set_partition(bool);
bool reachable(const struct host *, const struct host *);
/* Something that a process does and others may see: whatever can go wrong may do so now. */
void sim_point(const char *what);
void sim_trace(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void sim_violated(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void sockets_of_process_gone(struct proc *);
/* peer agents; socket.c's connect ends there */
void agent_connected(struct host *, struct obj *server_end);
void agent_heard_preamble(struct obj *server_end, const char *line, size_t len);

/* ---- qemu.c ---- */

struct proc *qemu_begin(struct host *, bool incoming);
json_t *qemu_says(struct proc *, struct obj *client, const json_t *command); /* the answer */
void qemu_greets(struct proc *, struct obj *monitor);
void qemu_exit(struct proc *, bool guest_did_it);
void guest_reset(void);
struct inode *qemu_disk(struct proc *qemu); /* as its shim has it open; NULL: nobody serves it */
struct proc *shim_of_qemu(struct proc *qemu);
struct machine;
struct inode *machine_inode(struct proc *shim);

/* ---- links.c, disks.c, ram.c ---- */

void links_reset(void);
void links_process_gone(struct proc *, bool silently);
void links_network_changed(void);
struct proc *links_peer(struct xm_links *); /* the process at the other end, while they are up */
struct xm_links *stream_links(struct proc *shim);
bool stream_held(struct proc *shim);
bool links_live(struct xm_links *);
void disks_guest_wrote(struct proc *shim, uint64_t version);
bool disks_hold_guest(struct proc *shim); /* its disk is just being swapped */
bool pages_complete(struct proc *shim);   /* the destination has all of the guest's memory */

/* ---- fault.c ---- */

enum fault {
    KILL_AGENT,
    KILL_SHIM,
    KILL_QEMU,
    TERM_SHIM,
    TERM_QEMU,
    STOP_AGENT,
    STOP_SHIM,
    STOP_QEMU,
    POWER_CUT,
    PARTITION,
    GUEST_OFF,
    FORCE_STOP,
    ABORT,
    RECOVER,
    START,
    KILL_CLI,
    DECLARED_DEAD, /* a power cut; the other host's operator says that it is dead, and then it is back. Not by
                      chance */
    FAULTS
};
extern const char *const fault_names[];
/* At point number `point` (from 1), at host number `host`. */
struct planned {
    unsigned long point;
    enum fault fault;
    int host;
};
#define PLANNED_MAX 4
/* What goes on at the points of a plan: a move to the other host, or of the disks between two datastores,
 * or one that needs two switch-overs. */
enum plan_of { WHOLE_MOVE, DISKS_MOVE, LATE_MOVE, PLANS_OF };
extern enum plan_of plan_of;
extern struct planned plan[PLANNED_MAX];
extern unsigned planned;
void faults_reset(unsigned random_ones); /* so many at chance */
void fault_point(const char *what);
void fault_do(enum fault, struct host *);
void heal(void);

/* ---- check.c ---- */

void check_always(void);                 /* after each event */
const char *check_unrest(struct host *); /* why it has not come to rest; NULL */
struct host *check_owner(void);
bool check_mine(struct host *);       /* its record says «mine» */
bool check_gives(struct host *);      /* its record says «given», and is open */
bool check_superseded(struct host *); /* it has a QEMU of a VM that another host owns with a later epoch */
bool check_runs(struct host *);
void check_left(struct host *owner);
void check_end(void); /* brings the VM back as the manual says, and looks at all of it */

/* ---- operator.c ---- */

void operator_reset(void);
void operator_script(void); /* what he does in this run */
/* One command; its answer (ok, error, exit) is kept for `said`. Not waited for. */
void operator_asks(struct host *, json_t *steals);
bool operator_waits(void);   /* an answer is outstanding */
json_t *operator_said(void); /* the last answer */
void operator_abort(struct host *);

/* ---- sins ---- */

enum sin {
    NO_SIN,
    RECORD_UNSYNCED,          /* the record is written and not made durable */
    RECORD_ERROR_IS_NOT_OURS, /* a record that cannot be read counts as none */
    NO_PROMISE,               /* the destination forgets what it has promised */
    RUN_WITHOUT_MINE,         /* it runs at RUN, and records nothing */
    NO_JOURNAL,               /* nothing is written down before it is made */
    DELETE_BEFORE_SETTLED,    /* the source deletes its disk when it has given */
    ACKNOWLEDGE_WITHOUT_RUN,  /* the destination says that it runs what it could not run */
    TIE_TO_US,                /* of two records of one epoch ours counts */
    SILENCE_IS_MINE,          /* a peer that does not answer has kept the VM */
    JOURNAL_IS_ENOUGH,        /* what the journal names is deleted, whatever the record says */
    GIVEN_RESUMES,            /* the source that hears nothing goes on */
    NO_SETTLING,              /* nobody settles what was left open */
    LOAD_BEFORE_PAGES,        /* device state is not held until all pages are there */
    PROMISE_STANDS,
    SWAP_UNRECORDED, /* storage-only: the disk is in the new file before spec.json says so */
    SINS
};
extern enum sin sin_committed;

#endif
