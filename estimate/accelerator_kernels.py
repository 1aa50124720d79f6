"""The control of the accelerator, clock edge after clock edge: all that decides when, and no data.

Each unit of the gateware has a record of its registers here, and a function that takes them over
clock edges. What is combinational there, :func:`run` computes from the registers before any of them
changes. FIFOs and streams of beats are levels; instructions are rows of a table.

A turn of :func:`run` takes all units over as many edges as every decision stays the same for:
pixels stream, beats arrive, or all wait. What nothing can hold up any more is not followed at all:
when a burst is asked for, its beats have their times; when a DRAIN begins, it runs to its end by
itself, since nothing else stores or takes precedence over it.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ..golden.isa import LEVELS, Error, Opcode, Region
from ..golden.registers import TIMED

__all__ = ["COUNTS", "INSTRUCTION", "LEAP", "MACHINE", "SPEC", "run"]

Records = Any
"""an array of records, whose fields are unknown to the type checker"""


def _record(names: str, **arrays: int) -> np.dtype:
    fields = [(name, np.int64) for name in names.split()]
    return np.dtype(fields + [(name, np.int64, (size,)) for name, size in arrays.items()])


SPEC = _record(
    "serial weights_ahead queue_depth weight_fifo program_fifo load_fifo store_fifo "
    "instruction_beats burst_beats outstanding page_beats code_rows_beats scale_beats tile_beats "
    "biased_tile_beats cols scale_tiles bias_tiles bias_beats scale_play bias_play revisit "
    "pass_cycles retire_cycles drain_cycles block_rows max_stages requantizer_depth "
    "accumulator_depth load_rows accumulator_mask offset_mask",
    field_beats=4,
)
"""Constants of the hardware; ``code_rows_beats`` are those of a tile before its scales,
``field_beats`` those of instructions, by queue."""

INSTRUCTION = _record(
    "opcode after_load after_pass after_drain region offset row_step block_step rows blocks words "
    "item_beats run_beats tiles biased accumulator start tile_level start_level pixels raw "
    "to_buffer to_memory",
    count=LEVELS,
    step=LEVELS,
)
"""What counts of an instruction: ``item_beats`` of a word or raw row, ``run_beats`` of a row of
them or of all tiles, ``step`` in the accumulators, ``pixels`` of the whole PASS or of a row."""

_LOAD, _WEIGHTS, _PASS, _DRAIN, _END = (
    int(op) for op in (Opcode.LOAD, Opcode.WEIGHTS, Opcode.PASS, Opcode.DRAIN, Opcode.END)
)
_MODEL, _INPUT, _OUTPUT = int(Region.MODEL), int(Region.INPUT), int(Region.OUTPUT)
_RANGE, _MISMATCH = int(Error.MEMORY_RANGE), int(Error.TILE_MISMATCH)
_LEFT, _DEADLOCK = int(Error.WEIGHTS_LEFT), int(Error.DEADLOCK)
_ACCUMULATOR, _PROGRAM = int(Error.ACCUMULATOR_RANGE), int(Error.PROGRAM_RANGE)

# FIFOs with an output register, by their place in the array of them.
_WEIGHT_BEATS, _PROGRAM_BEATS, _LOAD_BEATS, _STORE_BEATS, _ROWS, _SHARED = range(6)
# Read clients of the memory in the order of their priority: WEIGHTS, program, LOAD.
_CLIENTS = 3
# Queues of instructions, by engine, the first to be read, and engines that tickets count.
_QUEUES = 4
_READ_ORDER = (1, 0, 3, 2)
_TICKETED = 3
# What the array's pipeline lets go after a time: scales, biases, a PASS.
_SCALES, _BIASES, _PASSES = range(3)

# Depths that the gateware fixes, at most: queues of WEIGHTS and LOAD, instructions ahead.
_WEIGHTS_DEPTH = 4
_ROWS_RING = 16
_AHEAD = 4
_QUEUE_RING = 64
"""the largest queue_depth"""
_BURST_RING = 32
"""the largest outstanding"""
_FLYING = 64
"""responses of the memory; not even as many as the DMA waits for"""
_QUIET = 2048
"""cycles without any progress, beyond those of the memory, after which a DRAIN will not go on"""
_LONG_AGO = -(1 << 40)
_NEVER = LEAP = 1 << 40

_FIFO = _record("depth inner output")
_QUEUE = _record("first count ready", ring=_QUEUE_RING)
"""``ready`` is when the first instruction can begin, _NEVER as long as it is not being read."""
_BURSTS = _record("checked run_address run_beats active address left length offered final")
_SHARED_BURSTS = _record(
    "checked owner run_address run_beats offered served length final",
    active=_CLIENTS,
    address=_CLIENTS,
    left=_CLIENTS,
)
_READ = _record(
    "first level beat due free", room=_CLIENTS, client=_BURST_RING, length=_BURST_RING,
    time=_BURST_RING,
)  # fmt: skip
"""A burst that is asked for has a length and the earliest ``time`` of its first beat; ``due`` is
the next beat of all, which comes when memory is ``free`` again."""
_WRITE = _record(
    "held asked beat ends lengths first_end first_length", last=_BURST_RING, length=_BURST_RING
)
_MEMORY = _record("writing confirmed response responses", response_time=_FLYING)
_SEQUENCER = _record(
    "offset asking flying beat arriving full begun item ended image reader_free",
    completed=_TICKETED,
    dispatched=_TICKETED,
)
"""Under serial control an instruction that has ``begun`` stays until it is completed."""
_LOADER = _record(
    "active asking row block offset first_offset item level first word beat valid completes",
    rows=_ROWS_RING, last=_ROWS_RING,
)  # fmt: skip
_TILES = _record("asking address beats first level beat index", items=_WEIGHTS_DEPTH)
_TILE_LOADER = _record("position done biased")
_PLAYER = _record("held beat")
_WALK = _record(
    "active item remaining begun first valid sent_first sent_start sent_final sent_address",
    left=LEVELS,
    position=LEVELS,
)
_ISSUE = _record("held first start final address next_take")
_DRAINER = _record(
    "active item reads beat writing writes store_beat buffered offset to_announce to_confirm "
    "end error stores stored buffer_writes written"
)
"""``end`` is the last active cycle, with an error or without; of ``stores`` beats and
``buffer_writes`` so many are ``stored`` and ``written``, at times that are known."""
_STAGES = _record("valid_1 raw_1 last_1 valid_2 raw_2 last_2")
_REQUANTIZER = _record("row valid_1 end_1 valid_2 end_2 valid_3 end_3 valid")

COUNTS = _record(" ".join(TIMED).lower())
"""The counters of the accelerator."""

MACHINE = np.dtype(
    [
        ("fifos", _FIFO, (6,)),
        ("bursts", _SHARED_BURSTS),
        ("stores", _BURSTS),
        ("queues", _QUEUE, (_QUEUES,)),
        ("memory", _MEMORY),
        ("read", _READ),
        ("write", _WRITE),
        ("sequencer", _SEQUENCER),
        ("load", _LOADER),
        ("weights", _TILES),
        ("loader", _TILE_LOADER),
        ("scales", _PLAYER),
        ("biases", _PLAYER),
        ("walk", _WALK),
        ("issue", _ISSUE),
        ("drain", _DRAINER),
        ("stages", _STAGES),
        ("requantizer", _REQUANTIZER),
        ("bases", np.int64, (4,)),
        ("counters", COUNTS),
    ]
)
"""All registers; 0 after reset. Bases of regions are in beats, and right but for whole pages."""


# ---- FIFOs ----


@njit(cache=True)
def _tick_fifo(fifo, write, read):
    """SyncFIFOBuffered; `write` only where there is room, `read` whether or not there is a word."""
    moves = fifo.inner != 0 and (not fifo.output or read)
    fifo.inner += write - moves
    if moves:
        fifo.output = 1
    elif read:
        fifo.output = 0


@njit(cache=True)
def _steady(fifo, write, read):
    """Edges at which :func:`_tick_fifo` does the same, and leaves a word or none as it is."""
    if not fifo.output:
        return 1 if write or fifo.inner else _NEVER
    if not read:
        return _NEVER
    if write:
        return _NEVER if fifo.inner else 1
    return max(fifo.inner, 1)


@njit(cache=True)
def _tick_steady(fifo, write, read, n):
    """As many edges, not more than :func:`_steady`."""
    if n == 1:
        _tick_fifo(fifo, write, read)
    elif fifo.output:
        fifo.inner += n * (write - read)


@njit(cache=True)
def _has_room(fifo):
    return fifo.inner != fifo.depth - 1


# ---- hw/bursts.py ----


@njit(cache=True)
def _checks(bursts, step):
    """Whether the run that was looked up is taken over."""
    return bursts.checked and (not bursts.active or (step and bursts.final))


@njit(cache=True)
def _longest(spec, address):
    """Beats of a burst at most."""
    return min(spec.page_beats - address % spec.page_beats, spec.burst_beats)


@njit(cache=True)
def _tick_bursts(bursts, spec, take, check, step, address, beats):
    if bursts.active and not bursts.offered:
        room = _longest(spec, bursts.address)
        bursts.length = min(bursts.left, room)
        bursts.final = bursts.left <= room
        bursts.offered = 1
    elif step:
        bursts.offered = 0
    if check:
        bursts.active = bursts.run_beats != 0
        bursts.address = bursts.run_address
        bursts.left = bursts.run_beats
    elif step:
        bursts.active = not bursts.final
        bursts.address += bursts.length
        bursts.left -= bursts.length
    if take:
        bursts.checked = 1
        bursts.run_address = address
        bursts.run_beats = beats
    elif check:
        bursts.checked = 0


@njit(cache=True)
def _missing(bursts, spec, client, room):
    """Beats that must leave a client's FIFO before it may have a burst."""
    if not bursts.active[client] or room[client] >= spec.burst_beats:
        return _NEVER
    return spec.burst_beats - room[client]


@njit(cache=True)
def _next_client(bursts, spec, room):
    """Whose burst is offered next, negative if nobody's is."""
    if not bursts.offered:
        for client in range(_CLIENTS):
            if bursts.active[client] and room[client] >= spec.burst_beats:
                return client
    return -1


@njit(cache=True)
def _tick_shared_bursts(bursts, spec, taker, check, step, chosen, address, beats):
    """`taker` is the client whose run is looked up and `chosen` the one whose burst is offered
    next, negative for none."""
    if step:
        served = bursts.served
        bursts.active[served] = not bursts.final
        bursts.address[served] += bursts.length
        bursts.left[served] -= bursts.length
        bursts.offered = 0
    if chosen >= 0:
        room = _longest(spec, bursts.address[chosen])
        bursts.served = chosen
        bursts.length = min(bursts.left[chosen], room)
        bursts.final = bursts.left[chosen] <= room
        bursts.offered = 1
    if check:
        bursts.active[bursts.owner] = bursts.run_beats != 0
        bursts.address[bursts.owner] = bursts.run_address
        bursts.left[bursts.owner] = bursts.run_beats
    if taker >= 0:
        bursts.checked = 1
        bursts.owner = taker
        bursts.run_address = address
        bursts.run_beats = beats
    elif check:
        bursts.checked = 0


# ---- hw/read_dma.py, and the memory of sim/testbench.sv that answers it ----


@njit(cache=True)
def _tick_read(read, now, n, latency, gap, chosen, length, came):
    """`chosen` is the client whose burst of `length` is asked for, negative for none."""
    if came:
        read.beat += n
        read.due = read.free = now + n + gap
        if read.beat == read.length[read.first]:
            read.beat = 0
            read.first = (read.first + 1) % _BURST_RING
            read.level -= 1
            if read.level:
                read.due = max(read.free, read.time[read.first])
    if chosen >= 0:
        # The address is a register, memory takes it, and a beat is a register again.
        time = now + 2 + max(latency, 1)
        end = (read.first + read.level) % _BURST_RING
        read.client[end] = chosen
        read.length[end] = length
        read.time[end] = time
        read.room[chosen] -= length
        if not read.level:
            read.due = max(read.free, time)
        read.level += 1


# ---- hw/write_dma.py, and the memory that confirms ----


@njit(cache=True)
def _tick_writes(memory, now, latency, ask, stored_last):
    respond = memory.responses != 0 and now >= memory.response_time[memory.response]
    memory.confirmed = respond
    if ask:
        memory.writing = 1
    if stored_last:
        memory.writing = 0
        memory.response_time[(memory.response + memory.responses) % _FLYING] = now + latency
        memory.responses += 1
    if respond:
        memory.response = (memory.response + 1) % _FLYING
        memory.responses -= 1


@njit(cache=True)
def _tick_write(write, bursts, fifo, put, announce, accepted, stored, stored_last, confirmed):
    if confirmed:
        write.first_end = (write.first_end + 1) % _BURST_RING
        write.ends -= 1
    if stored:
        write.beat = 0 if stored_last else write.beat + 1
    if stored_last:
        write.first_length = (write.first_length + 1) % _BURST_RING
        write.lengths -= 1
    write.held += put
    if announce:
        write.held -= bursts.length
        write.length[(write.first_length + write.lengths) % _BURST_RING] = bursts.length
        write.lengths += 1
        write.last[(write.first_end + write.ends) % _BURST_RING] = bursts.final
        write.ends += 1
        write.asked = 1
    elif accepted:
        write.asked = 0
    _tick_fifo(fifo, put, stored)


# ---- hw/sequencer.py ----


@njit(cache=True)
def _ready(sequencer, item):
    """Whether the tickets of an instruction are there."""
    completed = sequencer.completed
    return (
        completed[0] >= item.after_load
        and completed[1] >= item.after_pass
        and completed[2] >= item.after_drain
    )


@njit(cache=True)
def _tick_fetch(sequencer, spec, wanted, requested, taken, leaves, ends):
    """`taken` beats of an instruction come in; what is behind END is dropped."""
    arrived = sequencer.beat + taken == spec.instruction_beats
    sequencer.flying += wanted - arrived
    if wanted:
        sequencer.asking = 1
    if requested:
        sequencer.asking = 0
        sequencer.offset += spec.instruction_beats
    if taken:
        sequencer.beat = 0 if arrived else sequencer.beat + taken
    if leaves:
        sequencer.full = 0
    if arrived and not sequencer.ended:
        sequencer.full = 1
        sequencer.item = sequencer.arriving
        sequencer.arriving += 1
    if ends:
        sequencer.ended = 1


@njit(cache=True)
def _read_queues(queues, sequencer, spec, now):
    """hw/instruction_store.py: begin to read the first instruction of a queue."""
    if now < sequencer.reader_free:
        return
    for index in _READ_ORDER:
        queue = queues[index]
        if queue.count and queue.ready == _NEVER:
            sequencer.reader_free = now + spec.field_beats[index]
            queue.ready = sequencer.reader_free + 1
            return


@njit(cache=True)
def _tick_queue(queue, write, begins, item):
    if write:
        queue.ring[(queue.first + queue.count) % _QUEUE_RING] = item
    if begins:
        queue.first = (queue.first + 1) % _QUEUE_RING
        queue.ready = _NEVER
    queue.count += write - begins


@njit(cache=True)
def _complete(sequencer, spec, kind):
    """An instruction of a unit is completed; hw/serial_sequencer.py keeps it until then."""
    sequencer.completed[kind] += 1
    if spec.serial:
        sequencer.full = sequencer.begun = 0


@njit(cache=True)
def _restart(sequencer):
    sequencer.offset = 0
    sequencer.arriving = 0
    sequencer.ended = 0
    sequencer.completed[:] = 0
    sequencer.dispatched[:] = 0


# ---- hw/load.py ----


@njit(cache=True)
def _tick_load(
    load, spec, table, accept, item, asked, step, last_row, last_block, beats, row, written
):
    """`beats` are taken; `row`: the only one completes a row. The buffer takes every word at once
    where there is more than one."""
    if beats:
        begin = table[load.rows[load.first]]
        load.beat += beats
        words = load.beat // begin.item_beats
        load.word = 0 if row else load.word + words
        load.beat -= words * begin.item_beats
        if words and not load.beat:
            load.valid = 1
            load.completes = row and load.last[load.first]
        elif written:
            load.valid = 0
    elif written:
        load.valid = 0
    if row:
        load.first = (load.first + 1) % _ROWS_RING
        load.level -= 1
    if asked:
        load.asking = 0
    if step:
        load.asking = not (last_row and last_block)
        end = (load.first + load.level) % _ROWS_RING
        load.rows[end] = load.item
        load.last[end] = last_row and last_block
        load.level += 1
        if not last_row:
            load.row += 1
            load.offset += table[load.item].row_step
        else:
            load.row = 0
            load.block += 1
            load.first_offset += table[load.item].block_step
            load.offset = load.first_offset
            load.active = not last_block
        load.offset &= spec.offset_mask
        load.first_offset &= spec.offset_mask
    if accept:
        load.active = load.asking = 1
        load.item = item
        load.block = 0
        load.offset = load.first_offset = table[item].offset


# ---- hw/weights.py ----


@njit(cache=True)
def _tick_weights(weights, table, accept, item, asked, beats, last, done):
    weights.beat = 0 if last else weights.beat + beats
    if last:
        weights.index = 0 if done else weights.index + 1
    if done:
        weights.first = (weights.first + 1) % _WEIGHTS_DEPTH
        weights.level -= 1
    if accept:
        weights.items[(weights.first + weights.level) % _WEIGHTS_DEPTH] = item
        weights.level += 1
        weights.asking = 1
        weights.address = table[item].offset
        weights.beats = table[item].run_beats
    elif asked:
        weights.asking = 0


# ---- hw/loader.py ----


@njit(cache=True)
def _has_room_for(player, tiles):
    return player.held != tiles or player.beat != 0


@njit(cache=True)
def _tick_player(player, beats, tile_beats):
    """Beats of scales or biases arrive, at most to the end of a tile's; when they have been played,
    they no longer count."""
    if beats:
        player.held += player.beat == 0
        player.beat += beats
        if player.beat == tile_beats:
            player.beat = 0


@njit(cache=True)
def _tick_tile_loader(loader, spec, beats, last, take):
    if take:
        loader.done = 0
    if last:
        loader.done = 1
        loader.biased = loader.position + beats > spec.code_rows_beats + spec.scale_beats
        loader.position = 0
    else:
        loader.position += beats


# ---- hw/passes.py and hw/issue.py ----


@njit(cache=True)
def _tick_passes(walk, spec, table, accept, item, move):
    current = table[walk.item]
    final = walk.remaining == 1
    if move:
        walk.valid = walk.active
        walk.sent_first = walk.first
        later = walk.begun & ((1 << current.start_level) - 1)
        walk.sent_start = current.start and not later
        walk.sent_final = final
        walk.sent_address = walk.position[LEVELS - 1]
    if accept:
        begin = table[item]
        walk.active = 1
        walk.item = item
        walk.remaining = begin.pixels
        walk.begun = 0
        walk.first = 1
        for k in range(LEVELS):
            walk.left[k] = begin.count[k] - 1
            walk.position[k] = begin.accumulator
    elif walk.active and move:
        walk.active = not final
        walk.remaining -= 1
        if not final:
            _next_pixel(walk, current, spec.accumulator_mask)


@njit(cache=True)
def _next_pixel(walk, current, address_mask):
    k = LEVELS - 1
    while not walk.left[k]:
        k -= 1
    moved = (walk.position[k] + current.step[k]) & address_mask
    walk.left[k] -= 1
    walk.begun = (walk.begun & ((1 << k) - 1)) | (1 << k)
    walk.first = current.tile_level > k
    walk.position[k] = moved
    for inner in range(k + 1, LEVELS):
        walk.left[inner] = current.count[inner] - 1
        walk.position[inner] = moved


@njit(cache=True)
def _tick_issue(issue, spec, walk, visited, now, accept, issued):
    if issued:
        visited[issue.address] = now
        if issue.first:
            issue.next_take = now + spec.pass_cycles
    if accept:
        issue.held = 1
        issue.first = walk.sent_first
        issue.start = walk.sent_start
        issue.final = walk.sent_final
        issue.address = walk.sent_address
    elif issued:
        issue.held = 0


@njit(cache=True)
def _tick_stream(walk, issue, spec, table, visited, now, n):
    """Up to `n` edges at which a pixel is issued that takes no tile, and two follow it; how many.

    What :func:`_tick_passes` and :func:`_tick_issue` do; the first one may be issued.
    """
    current = table[walk.item]
    inside = LEVELS - 1
    step, mask = current.step[inside], (1 << current.start_level) - 1
    starts, single = current.start != 0, current.tile_level > inside
    # The pixel in the issue stage, which the caller retires, and the one behind it.
    first, start, final, address = issue.first != 0, issue.start != 0, False, issue.address
    next_first, next_start, next_final = walk.sent_first != 0, walk.sent_start != 0, walk.sent_final
    next_address = walk.sent_address
    n = min(n, walk.remaining - 1)
    depth, revisit, address_mask = len(visited), spec.revisit, spec.accumulator_mask
    done = 0
    stops = False
    while done < n and not stops:
        # To the end of the innermost loop in registers.
        position, begun, from_walk = walk.position[inside], walk.begun, walk.first != 0
        row = min(n - done, max(walk.left[inside], 1))
        moved = 0
        while moved < row:
            settled = start or now - visited[address] >= revisit
            if first or final or not settled or next_address >= depth:
                stops = True
                break
            visited[address] = now
            now += 1
            first, start, final, address = next_first, next_start, next_final != 0, next_address
            next_first, next_final, next_address = from_walk, 0, position
            next_start = starts and not begun & mask
            moved += 1
            if walk.left[inside]:
                begun |= 1 << inside
                from_walk = single
                position = (position + step) & address_mask
        done += moved
        if walk.left[inside]:
            walk.left[inside] -= moved
            walk.begun, walk.position[inside], walk.first = begun, position, from_walk
        elif moved:
            _next_pixel(walk, current, address_mask)
    issue.first, issue.start, issue.final, issue.address = first, start, final, address
    walk.sent_first, walk.sent_start, walk.sent_address = next_first, next_start, next_address
    walk.sent_final = next_final
    walk.remaining -= done
    return done


# ---- hw/engine.py and hw/requantizer.py: from the accumulators to blocks ----


@njit(cache=True)
def _tick_stages(stages, free, fetch, raw, last):
    if free:
        stages.valid_2, stages.raw_2, stages.last_2 = stages.valid_1, stages.raw_1, stages.last_1
        stages.valid_1, stages.raw_1, stages.last_1 = fetch, raw, last


@njit(cache=True)
def _tick_requantizer(requantizer, spec, rows, shared, move, take, row_in, maximum):
    end = requantizer.row == spec.block_rows - 1
    if move:
        requantizer.valid = requantizer.valid_3 and requantizer.end_3
        requantizer.valid_3, requantizer.end_3 = requantizer.valid_2, requantizer.end_2
        requantizer.valid_2, requantizer.end_2 = requantizer.valid_1, requantizer.end_1
        requantizer.valid_1, requantizer.end_1 = take, end
    if take:
        requantizer.row = 0 if end else requantizer.row + 1
    _tick_fifo(rows, row_in, take)
    _tick_fifo(shared, maximum, take and end)


# ---- hw/drain.py ----


@njit(cache=True)
def _begin_drain(drain, item, begin):
    drain.active = 1
    drain.item = item
    drain.reads = drain.writes = begin.rows * begin.pixels
    drain.beat = 0
    drain.writing = 1
    drain.offset = begin.offset
    drain.to_announce = drain.to_confirm = begin.rows if begin.to_memory else 0
    drain.end = _NEVER
    drain.error = 0
    drain.stores = drain.stored = drain.buffer_writes = drain.written = 0


@njit(cache=True)
def _tick_drain(drain, spec, row_step, fetch, last_row, available, done, put, announced, stored):
    if fetch:
        drain.beat = 0 if last_row else drain.beat + 1
        drain.reads -= last_row
    if available:
        drain.buffered = not done
        if done:
            drain.store_beat = 0
            drain.writes -= 1
            drain.writing = drain.writes != 0
        elif put:
            drain.store_beat += 1
    if announced:
        drain.to_announce -= 1
        drain.offset = (drain.offset + row_step) & spec.offset_mask
    drain.to_confirm -= stored


@njit(cache=True)
def _run_drain(state, spec, table, sizes, now, latency, store_times, buffer_times):
    """A DRAIN that begins at cycle `now`, to its end or its error; the times of what it writes."""
    drain, stages, requantizer = state.drain, state.stages, state.requantizer
    fifos, write, memory, store = state.fifos, state.write, state.memory, state.stores
    item = table[drain.item]
    raw, to_memory, to_buffer = item.raw, item.to_memory, item.to_buffer
    # When the maximum of a block leaves the tree.
    levels = spec.max_stages
    tree = np.zeros(levels, np.bool_)
    quiet = 0
    while True:
        now += 1
        maximum = tree[now % levels]
        if spec.drain_cycles > 1:
            row_valid, row_raw, row_end = stages.valid_2, stages.raw_2, stages.last_2
        else:
            row_valid, row_raw, row_end = stages.valid_1, stages.raw_1, stages.last_1
        raw_valid = row_valid and row_raw
        available = drain.writing and (raw_valid if raw else requantizer.valid)
        put = available and to_memory and _has_room(fifos[_STORE_BEATS])
        item_done = available and (
            not to_memory or (put and drain.store_beat == item.item_beats - 1)
        )
        if row_raw:
            free = not row_valid or (item_done and raw)
        else:
            free = not row_valid or _has_room(fifos[_ROWS])
        row_in = row_valid and not row_raw and free
        fetch = drain.reads != 0 and free
        last_row = raw or drain.beat == spec.block_rows - 1
        blocks_move = not requantizer.valid or (item_done and not raw)
        row_out = blocks_move and fifos[_ROWS].output and fifos[_SHARED].output

        ask_accepted = write.asked and not memory.writing
        announce = (
            store.offered
            and (not write.asked or ask_accepted)
            and store.length <= write.held
            and write.lengths != spec.outstanding
            and write.ends != spec.outstanding
        )
        store_check = _checks(store, announce)
        store_run = drain.to_announce != 0 and (not store.checked or store_check)
        stored = write.lengths != 0 and fifos[_STORE_BEATS].output and memory.writing
        stored_last = stored and write.beat == write.length[write.first_length] - 1
        confirmed = memory.confirmed
        run_stored = confirmed and write.last[write.first_end]

        if not drain.writing and drain.to_confirm == 0:
            drain.end = now
            return
        quiet = 0 if fetch or item_done or stored else quiet + 1
        if quiet > _QUIET + latency:
            return
        if store_run and not _inside(item, drain.offset, item.run_beats, sizes):
            drain.end, drain.error = now, _RANGE
            return
        if available and to_buffer and not drain.buffered:
            buffer_times[drain.buffer_writes] = now
            drain.buffer_writes += 1
        if stored:
            store_times[drain.stores] = now
            drain.stores += 1

        tree[now % levels] = row_in and row_end
        _tick_writes(memory, now, latency, ask_accepted, stored_last)
        _tick_write(
            write, store, fifos[_STORE_BEATS], put, announce, ask_accepted, stored, stored_last,
            confirmed,
        )  # fmt: skip
        _tick_bursts(
            store, spec, store_run, store_check, announce, state.bases[item.region] + drain.offset,
            item.run_beats,
        )  # fmt: skip
        _tick_requantizer(
            requantizer, spec, fifos[_ROWS], fifos[_SHARED], blocks_move, row_out, row_in, maximum
        )
        _tick_stages(stages, free, fetch, raw, last_row)
        _tick_drain(
            drain,
            spec,
            item.row_step,
            fetch,
            last_row,
            available,
            item_done,
            put,
            store_run,
            run_stored,
        )


@njit(cache=True)
def _inside(item, offset, beats, sizes):
    """Whether a run stays in its region; what is not there is asked for by nobody."""
    return offset + beats <= sizes[item.region]


@njit(cache=True)
def _reset(state, spec):
    """What is not 0 after reset."""
    fifos, room = state.fifos, state.read.room
    fifos[_WEIGHT_BEATS].depth = spec.weight_fifo
    fifos[_PROGRAM_BEATS].depth = spec.program_fifo
    fifos[_LOAD_BEATS].depth = spec.load_fifo
    fifos[_STORE_BEATS].depth = spec.store_fifo
    fifos[_ROWS].depth = fifos[_SHARED].depth = spec.requantizer_depth
    for index in range(_QUEUES):
        state.queues[index].ready = _NEVER
    for index in range(_CLIENTS):
        room[index] = fifos[index].depth
    state.sequencer.image = 1


@njit(cache=True)
def _most(table):
    """Beats and words that a DRAIN stores, at most."""
    beats = words = 0
    for row in range(len(table)):
        item = table[row]
        if item.opcode == _DRAIN:
            beats = max(beats, item.rows * item.run_beats)
            words = max(words, item.rows * item.pixels)
    return beats, words


@njit(cache=True)
def run(
    machines: Records,
    specs: Records,
    table: Records,
    sizes: NDArray[np.int64],
    images: int,
    latency: int,
    gap: int,
    marks: NDArray[np.int64],
    counts: Records,
    leap: int,
) -> int:
    """Run a program; the error at which it halts, 0 for none. Counters are left in the machine.

    Parameters
    ----------
    machines, specs : one MACHINE of zeros, one SPEC
    table : an INSTRUCTION for each of the program
    sizes : of the regions, in beats; from image to image, INPUT and OUTPUT move on by theirs
    images : in one start
    latency, gap : of the memory
    marks : increasing numbers of pixels
    counts : as many COUNTS, set to the counters after the cycle that issued so many pixels
    leap : cycles of a turn at most, which changes nothing but the time it takes; LEAP for no limit
    """
    state, spec = machines[0], specs[0]
    _reset(state, spec)
    fifos, bursts, queues = state.fifos, state.bursts, state.queues
    read, sequencer = state.read, state.sequencer
    load, weights, loader = state.load, state.weights, state.loader
    scales, biases, walk, issue = state.scales, state.biases, state.walk, state.issue
    drain, counters, bases = state.drain, state.counters, state.bases

    # When each accumulator was last issued to, and when the current DRAIN writes.
    visited = np.full(spec.accumulator_depth, _LONG_AGO)
    most_beats, most_words = _most(table)
    store_times, buffer_times = np.zeros(most_beats, np.int64), np.zeros(most_words, np.int64)
    # When scales and biases have been played and PASSes retire: rings of what was issued.
    scales_after = 1 + spec.scale_play + spec.cols
    biases_after = 1 + spec.bias_play + spec.cols
    passes_after = 1 + spec.retire_cycles
    mask = 1
    while mask <= max(biases_after, passes_after, scales_after):
        mask = 2 * mask + 1
    times = np.zeros((3, mask + 1), np.int64)
    entered, left = np.zeros(3, np.int64), np.zeros(3, np.int64)
    scales_at = spec.code_rows_beats
    biases_at = scales_at + spec.scale_beats
    completed, dispatched = sequencer.completed, sequencer.dispatched

    # BEGIN and START are over; every turn is some cycles of RUN, the first one `now`.
    now = 2
    mark = 0
    while True:
        # What the array and DRAIN let go.
        for kind in range(3):
            while left[kind] != entered[kind] and times[kind, left[kind] & mask] <= now:
                left[kind] += 1
                if kind == _PASSES:
                    _complete(sequencer, spec, 1)
                elif kind == _SCALES:
                    scales.held -= 1
                else:
                    biases.held -= 1
        if drain.active and now > drain.end:
            drain.active = 0
            _complete(sequencer, spec, 2)

        # Issue stage and PASS engine.
        starved = issue.held and issue.first and not loader.done
        tile_there = not issue.first or (loader.done and now >= issue.next_take)
        settled = issue.start or now - visited[issue.address] >= spec.revisit
        issued = issue.held and tile_there and settled
        take = issued and issue.first
        if take and issue.start != loader.biased:
            return _MISMATCH
        pixel_ready = not issue.held or issued
        pixel_moves = walk.valid and pixel_ready
        pass_moves = not walk.valid or pixel_ready
        pass_ready = not walk.active or (pass_moves and walk.remaining == 1)

        # Tile loader and WEIGHTS engine.
        has_scale_room = _has_room_for(scales, spec.scale_tiles)
        has_bias_room = _has_room_for(biases, spec.bias_tiles)
        in_codes, in_scales = loader.position < scales_at, loader.position < biases_at
        room = in_codes or (has_scale_room if in_scales else has_bias_room)
        tile_ready = (not loader.done or take) and room
        weights_item = table[weights.items[weights.first]]
        beats_taken = tile_ready and weights.level != 0
        tile_moves = fifos[_WEIGHT_BEATS].output and beats_taken
        biased = weights_item.biased and weights.index == 0
        tile_beats = spec.biased_tile_beats if biased else spec.tile_beats

        # LOAD engine; DRAIN's words go first.
        buffer_write = False
        if drain.active:
            while drain.written != drain.buffer_writes and buffer_times[drain.written] < now:
                drain.written += 1
            if drain.written != drain.buffer_writes:
                buffer_write = buffer_times[drain.written] == now
        load_row = table[load.rows[load.first]]
        written = load.valid and not buffer_write
        last_beat = load.beat == load_row.item_beats - 1
        load_taken = load.level != 0 and (not last_beat or not load.valid or written)
        load_beat = fifos[_LOAD_BEATS].output and load_taken
        load_full_row = load_beat and last_beat and load.word == load_row.words - 1
        load_completed = written and load.completes
        load_item = table[load.item]
        last_of_block = load.row == load_item.rows - 1
        last_block = load.block == load_item.blocks - 1
        load_asks = load.asking and load.level != spec.load_rows
        load_steps = load.active and not load.asking
        loading = load.active or load.level != 0 or load.valid

        # Memory: the first client that can has its way.
        came = read.level != 0 and now == read.due
        client = read.client[read.first] if came else -1
        burst_asked = bursts.offered and read.level != spec.outstanding
        next_client = _next_client(bursts, spec, read.room)
        check = bursts.checked and not burst_asked
        more = sequencer.offset + spec.instruction_beats <= sizes[_MODEL]
        wanted = (
            not sequencer.ended and more and sequencer.flying != _AHEAD and not sequencer.asking
        )
        taker = -1
        if not bursts.checked or check:
            for index in range(_CLIENTS):
                asks = (
                    weights.asking if index == 0 else sequencer.asking if index == 1 else load_asks
                )
                own = bursts.active[index] or (bursts.checked and bursts.owner == index)
                if asks and not own:
                    taker = index
                    break
        weight_run, fetched, load_run = taker == 0, taker == 1, taker == 2

        # Sequencer: fetch and dispatch.
        fetching = sequencer.flying != 0 or (not sequencer.ended and (sequencer.full or more))
        program_taken = not sequencer.full or sequencer.ended
        program_beat = fifos[_PROGRAM_BEATS].output and program_taken
        item = sequencer.item
        opcode = table[item].opcode if sequencer.full else 0
        ends = opcode == _END
        to_load = to_weights = to_pass = to_drain = False

        # Sequencer: what may begin.
        if spec.serial:
            waits = not sequencer.begun
            next_load = next_weights = next_pass = next_drain = item
            load_offered, weights_offered = waits and opcode == _LOAD, opcode == _WEIGHTS
            pass_offered, drain_offered = waits and opcode == _PASS, waits and opcode == _DRAIN
            no_pass, pass_waits = not pass_offered, False
        else:
            to_load = opcode == _LOAD and queues[0].count != spec.queue_depth
            to_weights = opcode == _WEIGHTS and queues[1].count != spec.queue_depth
            to_pass = opcode == _PASS and queues[2].count != spec.queue_depth
            to_drain = opcode == _DRAIN and queues[3].count != spec.queue_depth
            _read_queues(queues, sequencer, spec, now)
            next_load = queues[0].ring[queues[0].first]
            next_weights = queues[1].ring[queues[1].first]
            next_pass = queues[2].ring[queues[2].first]
            next_drain = queues[3].ring[queues[3].first]
            load_offered = now >= queues[0].ready and _ready(sequencer, table[next_load])
            weights_offered = now >= queues[1].ready and _ready(sequencer, table[next_weights])
            pass_offered = now >= queues[2].ready and _ready(sequencer, table[next_pass])
            drain_offered = now >= queues[3].ready and _ready(sequencer, table[next_drain])
            no_pass = now < queues[2].ready
            pass_waits = not no_pass and not pass_offered
        load_begins = load_offered and (
            not load.active or (load_steps and last_of_block and last_block)
        )
        weights_begin = (
            weights_offered and not weights.asking and weights.level != spec.weights_ahead
        )
        pass_begins = pass_offered and pass_ready
        drain_begins = drain_offered and not drain.active
        begins = load_begins or weights_begin or pass_begins or drain_begins
        if spec.serial:
            dispatch = begins or ends
            leaves = weights_begin or ends
        else:
            dispatch = leaves = to_load or to_weights or to_pass or to_drain or ends

        # Sequencer: the end of an image.
        passes_done = completed[1] == dispatched[1]
        idle = (
            sequencer.ended
            and not fetching
            and completed[0] == dispatched[0]
            and passes_done
            and completed[2] == dispatched[2]
            and queues[1].count == 0
            and weights.level == 0
        )
        if sequencer.ended and passes_done:
            tile_waits = fifos[_WEIGHT_BEATS].output and weights.level != 0
            if tile_waits or issue.held or loader.done or loader.position != 0:
                return _LEFT
        if not sequencer.ended and not fetching:
            return _PROGRAM

        # Ranges, judged where a run is taken.
        if load_run and not _inside(load_item, load.offset, load_item.run_beats, sizes):
            return _RANGE
        if weight_run and weights.address + weights.beats > sizes[_MODEL]:
            return _RANGE
        if drain.active and drain.error and now == drain.end:
            return drain.error
        if pixel_moves and walk.sent_address >= len(visited):
            return _ACCUMULATOR

        # How many cycles stay like this one: all, unless a unit knows better.
        n = _NEVER
        for index in range(_QUEUES):
            if now < queues[index].ready < _NEVER:
                n = min(n, queues[index].ready - now)
            if queues[index].count and queues[index].ready == _NEVER:
                n = min(n, sequencer.reader_free - now)
        if (
            burst_asked
            or next_client >= 0
            or check
            or taker >= 0
            or wanted
            or load_steps
            or dispatch
            or begins
            or load_completed
            or idle
            or take
        ):
            n = 1
        streaming = issued and not take and walk.valid and walk.active and walk.remaining > 1
        if issue.held:
            if issued:
                n = min(n, walk.remaining - 1) if streaming else 1
            elif not starved and tile_there:
                n = min(n, visited[issue.address] + spec.revisit - now)
            elif not starved:
                n = min(n, issue.next_take - now)
            if walk.active and not walk.valid:
                n = 1
        elif walk.valid or walk.active:
            n = 1
        if left[_PASSES] != entered[_PASSES]:
            n = min(n, times[_PASSES, left[_PASSES] & mask] - now)
        if drain.active:
            n = min(n, max(drain.end + (not drain.error) - now, 1))
        if tile_moves:
            if in_codes and not has_scale_room:
                part_end = scales_at
            elif (in_codes or in_scales) and not has_bias_room:
                part_end = biases_at
            else:
                part_end = tile_beats
            n = min(n, part_end - loader.position, tile_beats - weights.beat)
            n = min(n, _missing(bursts, spec, _WEIGHT_BEATS, read.room))
        elif not room:
            kind = _SCALES if in_scales else _BIASES
            if left[kind] != entered[kind]:
                n = min(n, times[kind, left[kind] & mask] - now)
        if load_beat:
            beats_left = (load_row.words - load.word) * load_row.item_beats - load.beat - 1
            n = min(n, max(beats_left, 1))
            n = min(n, _missing(bursts, spec, _LOAD_BEATS, read.room))
            if drain.active and drain.written != drain.buffer_writes:
                n = min(n, max(buffer_times[drain.written] - now, 1))
        elif load.valid:
            n = 1
        if program_beat:
            n = min(n, spec.instruction_beats - sequencer.beat)
            n = min(n, _missing(bursts, spec, _PROGRAM_BEATS, read.room))
        if came:
            n = 1 if gap else min(n, read.length[read.first] - read.beat)
        elif read.level:
            n = min(n, read.due - now)
        n = min(n, _steady(fifos[_WEIGHT_BEATS], client == _WEIGHT_BEATS, beats_taken))
        n = min(n, _steady(fifos[_PROGRAM_BEATS], client == _PROGRAM_BEATS, program_taken))
        n = min(n, _steady(fifos[_LOAD_BEATS], client == _LOAD_BEATS, load_taken))
        if n == _NEVER:
            return _DEADLOCK
        if mark < len(marks) and issued:
            n = min(n, marks[mark] - counters.pixels)
        n = min(n, leap)

        # The clock edges.
        if take:
            times[_SCALES, entered[_SCALES] & mask] = now + scales_after
            entered[_SCALES] += 1
            if issue.start:
                times[_BIASES, entered[_BIASES] & mask] = now + biases_after
                entered[_BIASES] += 1
        if issued and issue.final:
            times[_PASSES, entered[_PASSES] & mask] = now + passes_after
            entered[_PASSES] += 1
        stalled = not walk.active and not walk.valid and pixel_ready
        hazard = issue.held and not issued and not starved
        if streaming:
            n = _tick_stream(walk, issue, spec, table, visited, now, n)
        elif pixel_moves or issued or pass_begins or (pass_moves and (walk.active or walk.valid)):
            _tick_issue(issue, spec, walk, visited, now, pixel_moves, issued)
            _tick_passes(walk, spec, table, pass_begins, next_pass, pass_moves)

        counters.cycles = now + n
        counters.instructions += dispatch
        counters.pixels += n * issued
        counters.stall_tile += n * starved
        counters.stall_ticket += n * (stalled and pass_waits)
        counters.stall_empty += n * (stalled and no_pass)
        counters.stall_hazard += n * hazard
        counters.load_busy += n * loading
        counters.read_beats += n * came
        if drain.active:
            counters.drain_busy += n
            while drain.stored != drain.stores and store_times[drain.stored] < now + n:
                drain.stored += 1
                counters.write_beats += 1
        if mark < len(marks) and counters.pixels == marks[mark]:
            counts[mark] = counters
            mark += 1
        if idle and sequencer.image >= images:
            return 0

        asked = bursts.served if burst_asked else -1
        _tick_read(read, now, n, latency, gap, asked, bursts.length, came)
        if tile_moves:
            read.room[_WEIGHT_BEATS] += n
        if program_beat:
            read.room[_PROGRAM_BEATS] += n
        if load_beat:
            read.room[_LOAD_BEATS] += n
        _tick_steady(fifos[_WEIGHT_BEATS], client == _WEIGHT_BEATS, beats_taken, n)
        _tick_steady(fifos[_PROGRAM_BEATS], client == _PROGRAM_BEATS, program_taken, n)
        _tick_steady(fifos[_LOAD_BEATS], client == _LOAD_BEATS, load_taken, n)
        if burst_asked or next_client >= 0 or check or taker >= 0:
            if weight_run:
                run_address, run_beats = bases[_MODEL] + weights.address, weights.beats
            elif fetched:
                run_address, run_beats = bases[_MODEL] + sequencer.offset, spec.instruction_beats
            else:
                run_address = bases[load_item.region] + load.offset
                run_beats = load_item.run_beats
            _tick_shared_bursts(
                bursts, spec, taker, check, burst_asked, next_client, run_address, run_beats
            )

        tile_last = tile_moves and weights.beat + n == tile_beats
        weights_done = tile_last and weights.index == weights_item.tiles - 1
        if tile_moves:
            end = loader.position + n
            scale_beats = min(end, biases_at) - max(loader.position, scales_at)
            _tick_player(scales, max(scale_beats, 0), spec.scale_beats)
            _tick_player(biases, max(end - max(loader.position, biases_at), 0), spec.bias_beats)
        if tile_moves or take:
            _tick_tile_loader(loader, spec, n * tile_moves, tile_last, take)
        if tile_moves or weights_begin or weight_run:
            _tick_weights(
                weights, table, weights_begin, next_weights, weight_run, n * tile_moves, tile_last,
                weights_done,
            )  # fmt: skip
        if loading or load_begins:
            _tick_load(
                load, spec, table, load_begins, next_load, load_run, load_steps, last_of_block,
                last_block, n * load_beat, load_full_row, written,
            )  # fmt: skip
        if drain_begins:
            _begin_drain(drain, next_drain, table[next_drain])
            _run_drain(state, spec, table, sizes, now, latency, store_times, buffer_times)

        if spec.serial:
            sequencer.begun |= begins and not weights_begin
            dispatched[0] += load_begins
            dispatched[1] += pass_begins
            dispatched[2] += drain_begins
        elif dispatch or begins:
            _tick_queue(queues[0], to_load, load_begins, item)
            _tick_queue(queues[1], to_weights, weights_begin, item)
            _tick_queue(queues[2], to_pass, pass_begins, item)
            _tick_queue(queues[3], to_drain, drain_begins, item)
        if load_completed:
            _complete(sequencer, spec, 0)
        dispatched[0] += to_load
        dispatched[1] += to_pass
        dispatched[2] += to_drain
        if wanted or fetched or program_beat or leaves:
            _tick_fetch(sequencer, spec, wanted, fetched, n * program_beat, leaves, ends)
        if idle:
            sequencer.image += 1
            _restart(sequencer)
            bases[_INPUT] += sizes[_INPUT]
            bases[_OUTPUT] += sizes[_OUTPUT]
        now += n
