/* SPDX-License-Identifier: MIT */
/* What a migration tells: its progress while it goes on, and the report at its end. Completed is what the
 * other side has acknowledged (invariant 9). Units: bytes, bytes a second, seconds, and ms where the name
 * says so. */
#include "migrate/source.h"

#include <stdio.h>

static void add_disks(struct source *m, json_t *o, uint64_t *done, uint64_t *total)
{
    struct pace_sample now = {.at = xm_now()}, shown = {.at = now.at};
    static const char *const modes[] = {"off", "starting", "async", "sync"};
    json_t *list = json_array();

    for (unsigned i = 0; i < m->machine->disks; i++) {
        struct machine_disk *d = &m->machine->disk[i];
        struct xm_disk_status st;
        if (!source_disk_moves(m, d))
            continue;
        xm_disk_status(d->disk, &st);
        uint64_t copied = m->state >= SOURCE_SETTLE ? st.size : 0;
        uint64_t there = st.chunks[XM_CHUNK_PRESENT];
        if (m->progress.verifying) /* what is compared is held as if it were copied */
            there += st.chunks[XM_CHUNK_COPYING];
        bool begun = copied || st.mode != XM_MIRROR_OFF;
        if (!begun) /* what it tells is of the last migration */
            st.given_up = st.mirrored_bytes = 0, st.copied = (struct xm_copier_stats){0};
        else if (!copied && st.chunks_total)
            copied = (uint64_t)((double)st.size * (double)there / (double)st.chunks_total);
        uint64_t chunk = st.chunks_total ? st.size / st.chunks_total : 0;
        struct pace_disk work = {.size = st.size,
                                 .allocated = st.allocated,
                                 .missing = st.size - copied,
                                 .copied = st.copied.bytes_data + st.copied.bytes_zero,
                                 .again = st.given_up * chunk,
                                 .chunk = begun ? chunk : 0};
        uint64_t of = pace_disk_total(&work), left = pace_disk_left(&work);
        *done += of - left;
        *total += of;
        shown.left += m->progress.verifying ? st.size - XM_MIN(st.verified, st.size) : left;
        shown.taken += m->progress.verifying ? st.verified : st.copied.bytes_data + st.mirrored_bytes;
        now.left += st.size - copied;
        now.taken += st.copied.bytes_data + st.mirrored_bytes;
        now.guest += st.mirrored_bytes;
        if (st.chunks_total)
            now.guest += (uint64_t)((double)st.given_up * (double)st.size / (double)st.chunks_total);
        json_array_append_new(list,
                              json_pack("{s:s s:I s:I s:s s:I s:I s:I}", "name", d->spec->name, "copied",
                                        (json_int_t)(of - left), "total", (json_int_t)of, "mode",
                                        modes[st.mode], "mirrored", (json_int_t)st.mirrored_bytes, "buffer",
                                        (json_int_t)st.buffer_bytes, "given_up", (json_int_t)st.given_up));
    }
    json_object_set_new(o, "disks", list);
    if (m->storage || m->local)
        pace_look(&m->progress.pace, &now);
    shown.guest = now.guest;
    if (m->storage || m->local)
        pace_look(&m->progress.shown, &shown);
}

/* While the disks are copied: how long it still takes follows from how fast what is left becomes less,
 * beside the guest's writes. */
static void add_pace(struct source *m, json_t *o)
{
    const struct pace *p = &m->progress.pace;
    double eta = pace_eta(&m->progress.shown);

    json_object_set_new(o, "eta_s", eta >= 0 ? json_real(eta) : json_null());
    json_object_set_new(o, "needed_rate", p->known ? json_real(p->needed) : json_null());
    if (m->local || m->progress.verifying)
        json_object_set_new(o, "rate", json_real(pace_rate(&m->progress.shown)));
    if (m->progress.verifying) {
        json_int_t verified = (json_int_t)m->progress.shown.last.taken;
        json_int_t left = (json_int_t)m->progress.shown.last.left;
        json_object_set_new(o, "verified_bytes", json_integer(verified));
        json_object_set_new(o, "verify_total", json_integer(verified + left));
    } else if (pace_outrun(p))
        json_object_set_new(o, "outrun", json_true());
}

void source_progress(struct source *m, bool now)
{
    uint64_t t = xm_now();
    uint64_t done = 0;
    uint64_t total = 0;
    uint64_t ram_done = 0;
    uint64_t ram_of = 0;

    if (!now && t - m->progress.last < 500 * XM_NS_PER_MS)
        return;
    m->progress.last = t;
    json_t *o = source_event(m, "progress");
    add_disks(m, o, &done, &total);
    if (m->precopy)
        xm_precopy_progress(m->precopy, &ram_done, &ram_of);
    double rate = m->links ? xm_links_rate(m->links) : 0;
    uint64_t dirty = (ram_of - ram_done) * XM_PAGE;
    uint64_t left = total - done + dirty;
    json_object_set_new(o, "bytes_done", json_integer((json_int_t)done));
    json_object_set_new(o, "bytes_total", json_integer((json_int_t)total));
    json_object_set_new(o, "rate", json_real(rate));
    json_object_set_new(o, "eta_s", rate > 1 ? json_real((double)left / rate) : json_null());
    if (m->state == SOURCE_DISKS)
        add_pace(m, o);
    json_object_set_new(o, "round", json_integer(m->report.rounds));
    json_object_set_new(o, "dirty_bytes", json_integer((json_int_t)dirty));
    json_object_set_new(o, "elapsed_s", json_real((double)(t - m->report.began) / 1e9));
    json_object_set_new(o, "wire_bytes",
                        json_integer(m->links ? (json_int_t)xm_links_wire_bytes(m->links) : 0));
    m->machine->emit(m->machine, o);
}

/* How long each part of the downtime took, and when it began and ended after the guest's stop. */
static void add_parts(const struct source_report *r, json_t *o)
{
    const struct {
        const char *name;
        const struct source_span *span;
    } part[] = {{"final_ram", &r->final_ram},
                {"disks", &r->disks},
                {"device_state", &r->device_state},
                {"handoff", &r->handoff}};
    json_t *took = json_object(), *when = json_object();

    for (unsigned i = 0; i < sizeof part / sizeof *part; i++) {
        const struct source_span *s = part[i].span;
        if (s->to < s->from || s->from < r->stopped_at)
            continue;
        json_object_set_new(took, part[i].name, json_real((double)(s->to - s->from) / 1e6));
        json_object_set_new(when, part[i].name,
                            json_pack("[f, f]", (double)(s->from - r->stopped_at) / 1e6,
                                      (double)(s->to - r->stopped_at) / 1e6));
    }
    json_object_set_new(o, "downtime_parts_ms", took);
    json_object_set_new(o, "downtime_timeline_ms", when);
}

void source_report_given_up(const struct source *m, json_t *o)
{
    const struct source_report *r = &m->report;

    if (m->attempt)
        json_object_update_new(o,
                               json_pack("{s:i s:f s:s}", "given_up_switches", (int)m->attempt, "given_up_ms",
                                         (double)r->stood / 1e6, "given_up", r->given_up.text));
}

json_t *source_report(struct source *m)
{
    struct source_report *r = &m->report;
    uint64_t disk_bytes = 0;
    uint64_t zero = 0;
    uint64_t mirrored = 0;
    uint64_t to_sync = 0;
    uint64_t to_async = 0;
    uint64_t held = 0;
    uint64_t held_max = 0;
    uint64_t given_up = 0;
    char digest[64];

    for (unsigned i = 0; i < m->machine->disks; i++) {
        struct xm_disk_status st;
        if (!source_disk_moves(m, &m->machine->disk[i]))
            continue;
        xm_disk_status(m->machine->disk[i].disk, &st);
        disk_bytes += st.copied.bytes_data + st.mirrored_bytes;
        zero += st.copied.bytes_zero + st.copied.bytes_hole;
        mirrored += st.mirrored_bytes;
        to_sync += st.to_sync;
        to_async += st.to_async;
        held += st.held;
        held_max = XM_MAX(held_max, st.held_ns_max);
        given_up += st.given_up;
        if (m->local) {
            r->digest.frames += st.digest.frames;
            r->digest.sum += st.digest.sum;
        }
    }
    snprintf(digest, sizeof digest, "%016llx", (unsigned long long)r->digest.sum);
    double down =
        r->running_at > r->stopped_at && r->stopped_at ? (double)(r->running_at - r->stopped_at) / 1e6 : 0;
    json_t *o =
        json_pack("{s:s s:s s:s s:f s:f s:I s:I s:I s:I s:i s:s}", "source", m->machine->host, "destination",
                  m->destination, "job", m->job, "total_s", (double)(xm_now() - r->began) / 1e9,
                  "downtime_ms", down, "disk_bytes", (json_int_t)disk_bytes, "disk_zero_bytes",
                  (json_int_t)zero, "ram_bytes", (json_int_t)r->ram_bytes, "wire_bytes",
                  m->links ? (json_int_t)xm_links_wire_bytes(m->links) : (json_int_t)0, "rounds",
                  (int)r->rounds, "digest", digest);
    if (!m->local)
        json_object_update_new(o, json_pack("{s:f, s:f, s:i}", "downtime_budget_ms",
                                            (double)m->opt.downtime / 1e6, "downtime_estimate_ms",
                                            (double)r->estimate / 1e6, "late_frames", (int)r->late_frames));
    source_report_given_up(m, o);
    json_object_set_new(o, "mirror",
                        json_pack("{s:I s:I s:I s:I s:f s:I}", "bytes", (json_int_t)mirrored, "to_sync",
                                  (json_int_t)to_sync, "to_async", (json_int_t)to_async, "held",
                                  (json_int_t)held, "held_ms_max", (double)held_max / 1e6, "given_up",
                                  (json_int_t)given_up));
    if (!m->local)
        add_parts(r, o);
    json_t *phases = json_object();
    uint64_t end = xm_now();
    for (int st = SOURCE_SETTLE; st >= SOURCE_PREPARE; st--) {
        if (!r->entered[st])
            continue;
        json_object_set_new(phases, source_step_name((enum source_state)st),
                            json_real((double)(end - r->entered[st]) / 1e9));
        end = r->entered[st];
    }
    json_object_set_new(o, "phases_s", phases);
    json_object_set_new(o, "kind",
                        json_string(m->local     ? "storage-only"
                                    : m->storage ? "unified"
                                                 : "compute-only"));
    if (m->paused)
        json_object_set_new(o, "paused", json_true());
    if (json_array_size(m->kept))
        json_object_set(o, "kept_disks", m->kept);
    if (m->opt.verify)
        json_object_set_new(o, "verified_bytes", json_integer((json_int_t)r->verified));
    if (m->local)
        json_object_set_new(o, "datastore", json_string(xm_json_str(m->request, "datastore", "")));
    return o;
}
