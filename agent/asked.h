/* SPDX-License-Identifier: MIT */
/* agent/asked.h: what another agent asks when a VM is to come here, read and bounded. Nothing in it is right
 * until it has been judged (admission.h, outside.h). */
#ifndef XM_AGENT_ASKED_H
#define XM_AGENT_ASKED_H

#include "agent/agent.h"
#include "agent/facts.h"

struct asked {
    struct vm_spec spec;
    struct admission_request req;
    struct fact_link link[CONFIG_MANY];
    char job[16];
    unsigned char *nvram; /* prepare: the firmware's variables; NULL: the VM has none */
    size_t nvram_size;
};

/* *q is zeros, and freed by asked_free also when this fails. Waits for what an earlier try for the same VM
 * still has to clear away. -EINVAL, with a sentence for the peer. The request must live as long as *q. */
int asked_read(struct agent *, struct asked *q, const json_t *request, struct xm_error *);
void asked_free(struct asked *);
/* A host that is known by another name there than here would be asked, after a hand-off that was cut, by a
 * name that neither record has. NULL, or the refusal. An older agent does not say for whom its request is. */
json_t *asked_of_another(const struct agent *, const json_t *request);
/* What an earlier migration has left open here, with who asks, is brought to its end (settle.c); with
 * another host, its end is waited for; or this one has to wait: -EBUSY. only_look: what was given to who
 * asks stays as it is; it is settled when the VM comes. */
int prepare_settle_last(struct agent *, const struct asked *, bool only_look, uint64_t patience,
                        struct xm_error *);
/* Whom this host gave the VM to may have it still: then what is announced is another one of that name, with
 * an epoch that is whatever its host says, and the right one would be given up for it there
 * (agent/returned.h). Who does not answer forbids nothing. */
void prepare_judge_owner(struct agent *, const struct asked *, json_t *reasons);
/* Disks that stay where they are, and are another VM's here. */
void prepare_judge_shared(struct agent *, const struct asked *, json_t *reasons);
/* What an earlier migration left here and should have taken away keeps the VM from coming when nobody knows
 * what it is. -errno with the sentence. */
int prepare_judge_left(struct agent *, const char *vm, struct xm_error *);

#endif
