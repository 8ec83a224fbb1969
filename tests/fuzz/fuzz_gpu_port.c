/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A helper that lies to an engine (io/gpu_wire.h): its indices, flags and completions, which change while they are read. The
 * engine submits uses and cancels, sleeps, wakes, and gives the helper up at the end.
 *
 * What must hold: each use ends exactly once, and not before the port ends unless a completion said so that fits it; commands
 * are published whole.
 */
#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "include/base/atomic.h"
#include "include/base/limits.h"
#include "io/gpu_port.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/support/changing.h"

#define ENTRIES 16
#define USES 64
#define STEPS_MAX 200
#define MS UINT64_C(1000000)

struct use {
    struct io_dma dma;
    uint32_t n_told;
    bool is_out; /* submitted, and has not ended */
};

static _Alignas(
    64) uint8_t memory[sizeof(struct gpu_ring) + ENTRIES * (sizeof(struct gpu_cmd) + sizeof(struct gpu_completion))];
static struct gpu_ring *ring;
static struct use uses[USES];
static uint32_t n_uses, n_out;

static void use_first(struct io_dma *dma)
{
    container_of(dma, struct use, dma)->n_told = 0;
}

static void use_next(struct io_dma *dma, struct io_dma_run *ret_run)
{
    uint32_t i = container_of(dma, struct use, dma)->n_told++;

    fuzz_check(i < dma->n_runs);
    *ret_run = (struct io_dma_run){.region = i, .epoch = 1, .off_bytes = UINT64_C(4096) * i, .len_bytes = 100};
}

static void use_done(struct io_dma *dma)
{
    struct use *use = container_of(dma, struct use, dma);

    fuzz_check(use->is_out, "it ends twice");
    fuzz_check(dma->result <= 0 && dma->result >= -4095);
    use->is_out = false;
    n_out--;
}

static void use_submit(struct fuzz *f, struct gpu_port *port)
{
    uint8_t how = fuzz_u8(f);
    struct use *use = &uses[n_uses % USES];

    if (use->is_out)
        return;
    *use = (struct use){.dma = {.op = how % 3,
                                .lane = how / 3 % 4,
                                .n_runs = how % 3 == IO_DMA_CANCEL ? 0 : 1 + how / 16,
                                .seq = n_uses,
                                .expires_ns = how * MS,
                                .run_first = use_first,
                                .run_next = use_next,
                                .done = use_done},
                        .is_out = true};
    use->dma.bytes = UINT64_C(100) * use->dma.n_runs;
    list_init(&use->dma.link);
    n_uses++;
    n_out++;
    gpu_port_submit(port, &use->dma);
}

/* What a helper would post for a command that it found, or nearly that. */
static void completion_post(struct fuzz *f)
{
    const struct gpu_cmd *cmds = gpu_ring_cmds(ring);
    struct gpu_completion *completions = gpu_ring_completions(ring, ENTRIES);
    uint32_t tail = load_relaxed(&ring->helper.done_tail);
    uint8_t what = fuzz_u8(f);
    struct gpu_cmd cmd;

    copy_once(&cmd, &cmds[what % ENTRIES], sizeof(cmd));
    struct gpu_completion c = {.cookie = cmd.cookie, .lane = cmd.lane, .status = what & 128 ? -EIO : 0};

    for (uint32_t i = 0; i < USES; i++)
        if (uses[i].is_out && uses[i].dma.seq == cmd.seq)
            c.bytes = uses[i].dma.bytes;
    if (what & 64)
        fuzz_patch(f, &c, sizeof(c));
    completions[tail % ENTRIES] = c;
    store_release(&ring->helper.done_tail, tail + 1);
}

static void step(struct fuzz *f, struct gpu_port *port, uint64_t *now_ns)
{
    switch (fuzz_u8(f) % 12) {
    case 0:
    case 1:
        use_submit(f, port);
        break;
    case 2:
        gpu_port_fill(port);
        break;
    case 3:
        completion_post(f);
        break;
    case 4:
        fuzz_check(gpu_port_take(port) <= ENTRIES || gpu_port_is_bad(port, 0));
        break;
    case 5: /* commands are taken */
        store_release(&ring->helper.cmd_head, load_relaxed(&ring->engine.cmd_tail));
        break;
    case 6:
        fuzz_patch(f, &ring->helper, 12);
        break;
    case 7:
        fuzz_patch(f, memory, sizeof(memory));
        break;
    case 8:
        if (gpu_port_sleep(port))
            (void)gpu_port_drain(port);
        gpu_port_wake(port);
        break;
    case 9:
        *now_ns += fuzz_u8(f) * 100 * MS;
        (void)gpu_port_is_bad(port, *now_ns);
        break;
    case 10:
        changing_arm(f);
        break;
    default:
        (void)gpu_port_peek(port);
        (void)gpu_port_is_idle(port);
        gpu_port_fill(port);
        (void)gpu_port_take(port);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int doorbell[2] = {-1, -1};
    struct fuzz f = fuzz_of(data, size);
    struct gpu_port *port;
    uint64_t now_ns = 0;

    if (doorbell[0] < 0)
        fuzz_check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, doorbell) == 0);
    memset(memory, 0, sizeof(memory));
    memset(uses, 0, sizeof(uses));
    n_uses = n_out = 0;
    ring = (struct gpu_ring *)(void *)memory;
    changing_reset();
    changing_watch(memory, sizeof(memory));
    fuzz_check(gpu_port_new(memory, ENTRIES, doorbell[0], &port) == 0);
    for (int i = 0; i < STEPS_MAX && fuzz_more(&f); i++)
        step(&f, port, &now_ns);
    gpu_port_end(port, -EIO);
    fuzz_check(n_out == 0, "%u uses never end", n_out);
    fuzz_check(gpu_port_is_idle(port));
    gpu_port_free(port);
    for (char byte; recv(doorbell[1], &byte, 1, MSG_DONTWAIT) == 1;)
        ;
    return 0;
}
