//! The execution loop with the x86-64 backend and the toy guest.

use crate::memory::PAGE_SIZE;
use std::sync::Arc;
use std::time::Duration;

use super::super::toy::{LEN, Op, ROM, Toy, ToyEnv, ToyMemory, asm};
use super::*;
use crate::backend::x86_64::X86_64;
use crate::code_cache::CodeCache;
use crate::env::SECOND_WAY_HITS;

type ToyVcpu = Vcpu<Toy, X86_64>;

struct Machine {
    memory: Arc<ToyMemory>,
    cpu: ToyVcpu,
}

const CODE: u64 = 0x1000;

fn program(insns: &[[u8; 6]]) -> Vec<u8> {
    insns.concat()
}

fn machine_with(cache: CodeCache, options: Options, env: Box<ToyEnv>) -> Machine {
    let memory = ToyMemory::new();
    let cpu = ToyVcpu::with_cache(env, memory.clone(), options, cache).unwrap();
    Machine { memory, cpu }
}

fn machine(insns: &[[u8; 6]]) -> Machine {
    machine_of(Options::default(), insns)
}

fn machine_of(options: Options, insns: &[[u8; 6]]) -> Machine {
    let mut env = ToyEnv::new();
    env.identity();
    env.pc = CODE;
    let cache = CodeCache::with_segments(4, 256 << 10).unwrap();
    let m = machine_with(cache, options, env);
    m.memory.poke(CODE, &program(insns));
    m
}

fn rel(from: usize, to: usize) -> i32 {
    (to as i32 - from as i32) * LEN as i32
}

/// `r0` times round a loop that adds 3 to `r1`.
fn counting_loop(times: i32) -> [[u8; 6]; 5] {
    [
        asm(Op::MovI, 0, 0, times),
        asm(Op::AddI, 1, 0, 3),
        asm(Op::AddI, 0, 0, -1),
        asm(Op::Jnz, 0, 0, rel(3, 1)),
        asm(Op::Halt, 0, 0, 0),
    ]
}

#[test]
fn a_loop_is_linked_and_stays_in_generated_code() {
    let mut m = machine(&counting_loop(100_000));
    assert_eq!(m.cpu.run(), 0);
    assert_eq!((m.cpu.env().r[0], m.cpu.env().r[1]), (0, 300_000));
    assert_eq!(m.cpu.env().pc, CODE + 5 * LEN);
    let stats = m.cpu.stats();
    assert!(stats.entries < 10, "{stats:?}");
    assert_eq!(stats.blocks.links, 2, "into the loop and out of it");
}

#[test]
fn a_loop_looks_once_for_what_stays_and_again_when_it_is_entered_again() {
    let mut m = machine(&[
        asm(Op::MovI, 0, 0, 1000),
        asm(Op::MovI, 2, 0, 0x5000),
        asm(Op::Load, 3, 2, 0),
        asm(Op::Store, 0, 2, 8),
        asm(Op::AddI, 0, 0, -1),
        asm(Op::Jnz, 0, 0, rel(5, 2)),
        asm(Op::Halt, 0, 0, 0),
    ]);
    m.memory.poke(0x5000, &3u64.to_le_bytes());
    m.memory.poke(0x6000, &4u64.to_le_bytes());
    assert_eq!(m.cpu.run(), 0);
    assert_eq!((m.cpu.env().r[3], m.memory.peek(0x5008, 8)), (3, 1));
    assert!(m.cpu.stats().slow_accesses < 10);
    m.memory.poke(0x5008, &77u64.to_le_bytes());
    let env = m.cpu.env_mut();
    env.pc = CODE;
    env.map(1, 0x5000, 0x6000);
    softmmu::flush_all::<Toy>(env);
    assert_eq!(m.cpu.run(), 0);
    assert_eq!((m.cpu.env().r[3], m.memory.peek(0x6008, 8)), (4, 1));
    assert_eq!(m.memory.peek(0x5008, 8), 77, "the old page is left alone");
    // A page that may only be read stays quick to read.
    let mut m = machine(&[
        asm(Op::MovI, 0, 0, 1000),
        asm(Op::MovI, 2, 0, 0x5000),
        asm(Op::Load, 3, 2, 0),
        asm(Op::AddI, 0, 0, -1),
        asm(Op::Jnz, 0, 0, rel(4, 2)),
        asm(Op::Store, 0, 2, 8),
    ]);
    m.cpu.env_mut().map(1, 0x5000, 0x6000).write = false;
    assert_eq!(m.cpu.run(), 100, "the store faults");
    assert!(m.cpu.stats().slow_accesses < 10);
}

#[test]
fn without_chaining_the_result_is_the_same() {
    for (max_insns, chain) in [(1, true), (2, false), (1, false)] {
        let mut env = ToyEnv::new();
        env.identity();
        env.pc = CODE;
        let cache = CodeCache::with_segments(4, 256 << 10).unwrap();
        let mut m = machine_with(cache, Options { max_insns, chain, ..Options::default() }, env);
        m.memory.poke(CODE, &program(&counting_loop(1000)));
        assert_eq!(m.cpu.run(), 0);
        assert_eq!(m.cpu.env().r[1], 3000);
        let stats = m.cpu.stats();
        assert_eq!(stats.blocks.links == 0, !chain);
        assert!(chain || stats.entries > 1000);
    }
}

/// A loop of 10,000 rounds that goes to another page and back, with these options.
fn indirect_loop(options: Options) -> Machine {
    let page2 = 0x3000;
    let mut env = ToyEnv::new();
    env.identity();
    env.pc = CODE;
    let m = machine_with(CodeCache::with_segments(4, 256 << 10).unwrap(), options, env);
    let insns = [
        asm(Op::MovI, 0, 0, 10_000),
        asm(Op::MovI, 2, 0, page2),
        asm(Op::MovI, 3, 0, CODE as i32 + 4 * LEN as i32),
        asm(Op::JmpR, 2, 0, 0),
        asm(Op::AddI, 0, 0, -1),
        asm(Op::Jnz, 0, 0, rel(5, 3)),
        asm(Op::Halt, 0, 0, 0),
    ];
    m.memory.poke(CODE, &program(&insns));
    m.memory.poke(page2 as u64, &program(&[asm(Op::AddI, 1, 0, 1), asm(Op::JmpR, 3, 0, 0)]));
    m
}

#[test]
fn what_is_executed_can_be_counted() {
    let mut m = indirect_loop(Options { count: true, ..Options::default() });
    assert_eq!(m.cpu.run(), 0);
    let executed = m.cpu.stats().executed;
    // Five instructions a round; three before the first one, and the halt.
    assert_eq!(executed.guest, 5 * 10_000 + 3 + 1);
    assert_eq!((executed.indirect, executed.helpers), (2 * 10_000, 0));
    let per_insn = executed.host as f64 / executed.guest as f64;
    assert!((1.0..20.0).contains(&per_insn), "{executed:?}");
    let mut plain = indirect_loop(Options::default());
    assert_eq!(plain.cpu.run(), 0);
    assert_eq!(plain.cpu.env().r, m.cpu.env().r);
    assert_eq!(plain.cpu.stats().executed, crate::env::Executed::default());
}

#[test]
fn accesses_are_counted_where_they_are_reached() {
    let insns = [
        asm(Op::MovI, 0, 0, 1000),
        asm(Op::MovI, 2, 0, 0x8000),
        asm(Op::Load, 1, 2, 8),
        asm(Op::AddI, 0, 0, -1),
        asm(Op::Jnz, 0, 0, rel(4, 2)),
        asm(Op::Halt, 0, 0, 0),
    ];
    let mut env = ToyEnv::new();
    env.identity();
    env.pc = CODE;
    let cache = CodeCache::with_segments(4, 256 << 10).unwrap();
    let mut m = machine_with(cache, Options { count: true, ..Options::default() }, env);
    m.memory.poke(CODE, &program(&insns));
    assert_eq!(m.cpu.run(), 0);
    let stats = m.cpu.stats();
    assert_eq!((stats.executed.accesses, stats.executed.guest), (1000, 3003));
    assert!(stats.slow_accesses > 0 && stats.slow_time > Duration::ZERO, "{stats:?}");
}

#[test]
fn links_and_the_jump_cache_can_be_left_out() {
    for (left_out, entries) in [(OptFlags::LINK, 10_000), (OptFlags::JUMP_CACHE, 20_000)] {
        let mut m = indirect_loop(Options { opt: OptFlags::all() - left_out, ..Options::default() });
        assert_eq!(m.cpu.run(), 0);
        assert_eq!(m.cpu.env().r[1], 10_000);
        let stats = m.cpu.stats();
        assert!(stats.entries >= entries, "{left_out:?}: {stats:?}");
        assert_eq!(stats.blocks.links == 0, left_out == OptFlags::LINK);
    }
}

#[test]
fn indirect_jumps_hit_the_jump_cache() {
    let mut m = indirect_loop(Options::default());
    assert_eq!(m.cpu.run(), 0);
    assert_eq!(m.cpu.env().r[1], 10_000);
    assert!(m.cpu.stats().entries < 20, "{:?}", m.cpu.stats());
}

#[test]
fn a_flush_of_code_is_followed_by_look_ups_without_leaving_generated_code() {
    let page2 = 0x3000;
    let mut m = machine(&[
        asm(Op::MovI, 0, 0, 1000),
        asm(Op::MovI, 2, 0, page2),
        asm(Op::MovI, 3, 0, CODE as i32 + 5 * LEN as i32),
        asm(Op::FlushPage, 2, 0, 0),
        asm(Op::JmpR, 2, 0, 0),
        asm(Op::AddI, 0, 0, -1),
        asm(Op::Jnz, 0, 0, rel(6, 3)),
        asm(Op::Halt, 0, 0, 0),
    ]);
    m.memory.poke(page2 as u64, &program(&[asm(Op::AddI, 1, 0, 1), asm(Op::JmpR, 3, 0, 0)]));
    assert_eq!(m.cpu.run(), 0);
    assert_eq!(m.cpu.env().r[1], 1000);
    let stats = m.cpu.stats();
    assert!(stats.mmu.code_page_flushes >= 999 && stats.lookups >= 2000, "{stats:?}");
    assert!(stats.entries < 1020, "only the flush itself leaves: {stats:?}");
}

#[test]
fn a_fault_shows_the_state_before_the_instruction() {
    let mut m = machine(&[
        asm(Op::MovI, 1, 0, 11),
        asm(Op::MovI, 2, 0, 0x4000_0000),
        asm(Op::AddI, 1, 0, 1),
        asm(Op::Load, 1, 2, 8),
        asm(Op::MovI, 1, 0, 99),
        asm(Op::Halt, 0, 0, 0),
    ]);
    assert_eq!(m.cpu.run(), 100);
    let (e, pc, r) = m.cpu.env().exceptions[0];
    assert_eq!((e.vector, e.address, pc), (14, 0x4000_0008, CODE + 3 * LEN));
    assert_eq!((r[1], r[2]), (12, 0x4000_0000));
}

#[test]
fn a_helpers_fault_shows_the_state_before_the_instruction() {
    let handler = 0x2000;
    let mut m = machine(&[
        asm(Op::MovI, 7, 0, 5),
        asm(Op::AddI, 7, 0, 5),
        asm(Op::Fault, 0, 0, 0),
        asm(Op::MovI, 7, 0, 1),
        asm(Op::Halt, 0, 0, 0),
    ]);
    m.cpu.env_mut().handler = handler;
    m.memory.poke(handler, &program(&[asm(Op::AddI, 7, 0, 1), asm(Op::Halt, 0, 0, 0)]));
    assert_eq!(m.cpu.run(), 0);
    let env = m.cpu.env();
    assert_eq!((env.exceptions[0].0.vector, env.exceptions[0].1), (9, CODE + 2 * LEN));
    assert_eq!((env.exceptions[0].2[7], env.r[7]), (10, 11));
    assert_eq!(env.header.helper_fault, 0);
}

#[test]
fn loads_and_stores_reach_ram_rom_and_mmio() {
    let mmio = super::super::toy::RAM as i32;
    let mut m = machine(&[
        asm(Op::MovI, 0, 0, 0x8000),
        asm(Op::MovI, 1, 0, 0x1234),
        asm(Op::Store, 1, 0, 0),
        asm(Op::Store, 1, 0, 0xffc), // crosses into 0x9000
        asm(Op::Load, 2, 0, 0xffc),
        asm(Op::MovI, 3, 0, ROM as i32),
        asm(Op::Store, 1, 3, 8),
        asm(Op::Load, 4, 3, 8),
        asm(Op::MovI, 5, 0, mmio),
        asm(Op::Store, 1, 5, 4), // misaligned: two parts
        asm(Op::Load, 6, 5, 8),
        asm(Op::AtomicAdd, 1, 0, 0),
        asm(Op::Halt, 0, 0, 0),
    ]);
    m.memory.poke(ROM + 8, &[7]);
    assert_eq!(m.cpu.run(), 0);
    let r = m.cpu.env().r;
    assert_eq!((r[1], r[2], r[4], r[6]), (0x1234, 0x1234, 7, mmio as u64 + 8));
    assert_eq!((m.memory.peek(0x8000, 8), m.memory.peek(0x8ffc, 8)), (0x2468, 0x1234));
    let mmio = mmio as u64;
    let written = [(ROM + 8, 8, 0x1234), (mmio + 4, 4, 0x1234), (mmio + 8, 4, 0)];
    assert_eq!(*m.memory.written.lock().unwrap(), written);
}

#[test]
fn blocks_may_lie_across_pages_and_follow_the_second_one() {
    // The instruction at 0x1ffd has three bytes on each page; the next ones are on the second.
    let mut m = machine(&[asm(Op::Jmp, 0, 0, 0xffd - LEN as i32 + LEN as i32)]);
    let at = 0x1ffd;
    let crossing = program(&[asm(Op::AddI, 1, 0, 0x100), asm(Op::JmpR, 2, 0, 0)]);
    m.memory.poke(at, &crossing);
    // Another second page, where the immediate's upper bytes differ.
    m.memory.poke(0x5000, &crossing[3..]);
    m.memory.poke(0x5000, &[2]);
    let back = 0x6000;
    m.memory.poke(
        back,
        &program(&[
            asm(Op::MovI, 3, 0, 0x2000),
            asm(Op::FlushPage, 3, 0, 0),
            asm(Op::MovI, 2, 0, 0x7000),
            asm(Op::Jmp, 0, 0, at as i32 - (back as i32 + 3 * LEN as i32)),
        ]),
    );
    m.memory.poke(0x7000, &program(&[asm(Op::Halt, 0, 0, 0)]));
    m.cpu.env_mut().r[2] = 0x7000;
    assert_eq!(m.cpu.run(), 0);
    assert_eq!(m.cpu.env().r[1], 0x100);
    // Now with the second page mapped elsewhere.
    let env = m.cpu.env_mut();
    env.pc = back;
    env.map(1, 0x2000, 0x5000);
    assert_eq!(m.cpu.run(), 0);
    assert_eq!(m.cpu.env().r[1], 0x100 + 0x200);
}

/// Goes `times` times to code elsewhere that adds an immediate to `r1`, `first` at first; after each time, `change` is executed
/// and the low byte of `r5` stored to the immediate's.
fn rewriting(times: i32, first: i32, change: [u8; 6]) -> Machine {
    let target = 0x3000;
    let m = machine(&[
        asm(Op::MovI, 2, 0, target),
        asm(Op::MovI, 3, 0, CODE as i32 + 4 * LEN as i32),
        asm(Op::MovI, 4, 0, times),
        asm(Op::JmpR, 2, 0, 0),
        change,
        asm(Op::Store8, 5, 2, 2),
        asm(Op::AddI, 4, 0, -1),
        asm(Op::Jnz, 4, 0, rel(7, 3)),
        asm(Op::Halt, 0, 0, 0),
    ]);
    m.memory.poke(target as u64, &program(&[asm(Op::AddI, 1, 0, first), asm(Op::JmpR, 3, 0, 0)]));
    m
}

#[test]
fn stores_to_other_code_take_effect_at_once() {
    let mut m = rewriting(3, 1, asm(Op::AddI, 5, 0, 10));
    assert_eq!(m.cpu.run(), 0);
    assert_eq!(m.cpu.env().r[1], 1 + 10 + 20);
    let stats = m.cpu.stats();
    assert_eq!(stats.blocks.invalidated, 3);
    assert_eq!(stats.translated_once, 0, "nothing overwrote itself");
}

#[test]
fn a_store_beside_code_invalidates_nothing() {
    let mut m = machine(&[
        asm(Op::MovI, 0, 0, 100),
        asm(Op::MovI, 2, 0, CODE as i32 + 0x800),
        asm(Op::Store, 0, 2, 0),
        asm(Op::AddI, 0, 0, -1),
        asm(Op::Jnz, 0, 0, rel(4, 2)),
        asm(Op::Halt, 0, 0, 0),
    ]);
    assert_eq!(m.cpu.run(), 0);
    let stats = m.cpu.stats();
    assert_eq!(stats.blocks.invalidated, 0);
    assert!(stats.mmu.code_page_stores < 3, "generated code knows where the code is");
    assert_eq!(m.memory.peek(CODE + 0x800, 8), 1);
}

/// Where [`stores_beside_code`] stores to: in the page of its code.
const DATA: u64 = CODE + 0x800;

/// So many stores to a page are enough for a window (see `softmmu::window`).
const MANY: i32 = 2 * SECOND_WAY_HITS as i32;

/// Stores `times` times to the page of its code, and goes to `r6` with [`DATA`] in `r2`; `then` is executed when that comes back
/// to `r3`. It has run once, with nothing at `r6`: so nothing but what is there is translated any more.
fn stores_beside_code(times: i32, then: &[[u8; 6]]) -> Machine {
    let first = [
        asm(Op::MovI, 0, 0, times),
        asm(Op::MovI, 2, 0, DATA as i32),
        asm(Op::Store, 0, 2, 0),
        asm(Op::AddI, 0, 0, -1),
        asm(Op::Jnz, 0, 0, rel(4, 2)),
        asm(Op::MovI, 3, 0, CODE as i32 + 7 * LEN as i32),
        asm(Op::JmpR, 6, 0, 0),
    ];
    // With a loop head, one look would do for all rounds.
    let options = Options { opt: OptFlags::all() - OptFlags::LOOPS, ..Options::default() };
    let mut m = machine_of(options, &[&first, then].concat());
    m.memory.poke(0x4000, &program(&[asm(Op::JmpR, 3, 0, 0)]));
    m.cpu.env_mut().r[6] = 0x4000;
    assert_eq!(m.cpu.run(), 0);
    m.cpu.env_mut().pc = CODE;
    m
}

/// Number of places in a machine's windows where a byte can be stored to.
fn window_bytes(m: &Machine) -> u64 {
    m.cpu.context.runtime().windows.modes.iter().map(|window| window.room[0]).sum()
}

#[test]
fn windows_close_with_translations() {
    let changes: [fn(&mut ToyEnv); 5] = [
        |_| (),
        |env| softmmu::flush_page::<Toy>(env, 1, DATA),
        |env| softmmu::flush_space::<Toy>(env, 1),
        softmmu::flush_all::<Toy>,
        softmmu::switch_space::<Toy>,
    ];
    for (n, change) in changes.into_iter().enumerate() {
        let mut m = stores_beside_code(MANY, &[asm(Op::Halt, 0, 0, 0)]);
        assert_eq!(m.cpu.run(), 0);
        assert_eq!(window_bytes(&m), 4096 - 64, "all but the line of the program");
        change(m.cpu.env_mut());
        assert_eq!(window_bytes(&m) != 0, n == 0, "change {n}");
    }
}

#[test]
fn a_block_in_a_window_closes_it() {
    let mut m = stores_beside_code(
        MANY,
        &[
            asm(Op::Store8, 3, 6, 2), // immediate of the first instruction there
            asm(Op::MovI, 3, 0, CODE as i32 + 10 * LEN as i32),
            asm(Op::JmpR, 6, 0, 0),
            asm(Op::Halt, 0, 0, 0),
        ],
    );
    let there = DATA + 0x100;
    m.memory.poke(there, &program(&[asm(Op::AddI, 1, 0, 1), asm(Op::JmpR, 3, 0, 0)]));
    m.cpu.env_mut().r[6] = there;
    let before = m.cpu.stats().blocks.invalidated;
    assert_eq!(m.cpu.run(), 0);
    assert_eq!(m.cpu.env().r[1], 1 + (CODE + 7 * LEN) % 256);
    assert_eq!(m.cpu.stats().blocks.invalidated, before + 1);
}

#[test]
fn a_store_that_reaches_into_code_is_noticed() {
    // By the bit map of the second way, and by the window.
    for times in [2, MANY] {
        let mut m = stores_beside_code(
            times,
            &[
                asm(Op::Store, 7, 6, -4),
                asm(Op::MovI, 3, 0, CODE as i32 + 10 * LEN as i32),
                asm(Op::JmpR, 6, 0, 0),
                asm(Op::Halt, 0, 0, 0),
            ],
        );
        let there = DATA + 0x100;
        let [one, two] = [1, 2].map(|by| program(&[asm(Op::AddI, 1, 0, by), asm(Op::JmpR, 3, 0, 0)]));
        m.memory.poke(there, &one);
        let mut store = [0; 8];
        // The first time it changes nothing; everything has been translated then.
        for (first, sum) in [(&one, 2), (&two, 3)] {
            store[4..].copy_from_slice(&first[..4]);
            let env = m.cpu.env_mut();
            (env.pc, env.r[1], env.r[6], env.r[7]) = (CODE, 0, there, u64::from_le_bytes(store));
            assert_eq!(m.cpu.run(), 0);
            assert_eq!(m.cpu.env().r[1], sum, "after {times} stores");
        }
    }
}

/// Loads and stores all over a large page, several times.
#[test]
fn pages_of_a_large_page_are_seldom_left_to_slow_paths() {
    let large = 1 << 21;
    let mut m = machine(&[
        asm(Op::MovI, 0, 0, 25_000),
        asm(Op::MovI, 2, 0, large),
        asm(Op::Load, 3, 2, 0),
        asm(Op::AddI, 3, 0, 1),
        asm(Op::Store, 3, 2, 0),
        asm(Op::Store, 3, 2, 0xffd), // crosses pages
        asm(Op::Load, 3, 2, 0xffd),
        asm(Op::AddI, 2, 0, 0x5000),
        asm(Op::AddI, 0, 0, -1),
        asm(Op::Jnz, 0, 0, rel(9, 2)),
        asm(Op::Halt, 0, 0, 0),
    ]);
    // All of the addresses, again and again, are the same two megabytes; each has entries of its own.
    for n in 0..260 {
        let mapping = m.cpu.env_mut().map(1, (n + 1) << 21, 1 << 21);
        (mapping.page_bits, mapping.alike_bits) = (21, 21);
    }
    assert_eq!(m.cpu.run(), 0);
    let stats = m.cpu.stats();
    assert!(stats.mmu.walks < 2 * 260, "{stats:?}");
    assert!(stats.slow_accesses < 20_000, "of 100000: {stats:?}");
    let before: u64 = (0..512).map(|n| m.memory.peek((1 << 21) + n * 0x1000, 2)).sum();
    assert!(before > 0);
}

#[test]
fn a_group_across_pages_finds_pages_that_only_the_first_way_has() {
    // The other page has the same index in the second way as that of the two accesses that make a group.
    let other = 0x100_0000;
    let mut m = machine(&[
        asm(Op::MovI, 0, 0, 10_000),
        asm(Op::MovI, 2, 0, 0x8000),
        asm(Op::MovI, 5, 0, other),
        asm(Op::Load, 3, 2, 0xff8),
        asm(Op::Load, 4, 2, 0x1000),
        asm(Op::Load, 6, 5, 0),
        asm(Op::AddI, 0, 0, -1),
        asm(Op::Jnz, 0, 0, rel(7, 3)),
        asm(Op::Halt, 0, 0, 0),
    ]);
    m.cpu.env_mut().map(1, other as u64, 0x5000);
    assert_eq!(m.cpu.run(), 0);
    let stats = m.cpu.stats();
    assert!(stats.slow_accesses < 100, "of 20000 that miss: {stats:?}");
}

#[test]
fn stores_by_a_large_page_to_code_take_effect() {
    let (large, target) = (1i32 << 21, 0x3000);
    let mut m = machine(&[
        asm(Op::MovI, 2, 0, large),
        asm(Op::Store, 0, 2, 0x10_0000), // the large page is in the TLB before there is code in it
        asm(Op::MovI, 3, 0, CODE as i32 + 6 * LEN as i32),
        asm(Op::MovI, 4, 0, 3),
        asm(Op::MovI, 6, 0, large + target),
        asm(Op::JmpR, 6, 0, 0),
        asm(Op::AddI, 5, 0, 10),
        asm(Op::Store8, 5, 2, target + 2), // immediate of the first instruction there
        asm(Op::AddI, 4, 0, -1),
        asm(Op::Jnz, 4, 0, rel(9, 5)),
        asm(Op::Halt, 0, 0, 0),
    ]);
    let mapping = m.cpu.env_mut().map(1, large as u64, large as u64);
    (mapping.page_bits, mapping.alike_bits) = (21, 21);
    let code = program(&[asm(Op::AddI, 1, 0, 1), asm(Op::JmpR, 3, 0, 0)]);
    m.memory.poke((large + target) as u64, &code);
    assert_eq!(m.cpu.run(), 0);
    assert_eq!(m.cpu.env().r[1], 1 + 10 + 20);
    assert_eq!(m.cpu.stats().blocks.invalidated, 3);
}

/// A block that overwrites the immediate of its own next instruction.
fn self_modifying(store: Op) -> Machine {
    let here = CODE as i32;
    machine(&[
        asm(Op::MovI, 2, 0, here),
        asm(Op::MovI, 3, 0, 42),
        // Opcode, registers and immediate of the instruction after the next.
        asm(Op::Load, 3, 2, 5 * LEN as i32),
        asm(store, 3, 2, 4 * LEN as i32),
        asm(Op::AddI, 1, 0, 1),
        asm(Op::AddI, 1, 0, 42),
        asm(Op::Halt, 0, 0, 0),
    ])
}

#[test]
fn a_block_that_overwrites_itself_runs_what_it_wrote() {
    for store in [Op::Store, Op::HelperStore] {
        let mut m = self_modifying(store);
        // Eight bytes are copied: all of the instruction and two bytes of the next one, which stay the same.
        m.memory.poke(CODE + 5 * LEN + 6, &[Op::AddI as u8, 1]);
        m.memory.poke(CODE + 6 * LEN + 6, &[Op::Halt as u8, 0]);
        assert_eq!(m.cpu.run(), 0);
        assert_eq!(m.cpu.env().r[1], 84, "{store:?}");
        assert_eq!(m.cpu.stats().translated_once, 1);
        assert!(m.cpu.env().exceptions.is_empty());
    }
}

#[test]
fn an_endless_loop_is_left_for_a_kick() {
    let mut m = machine(&[asm(Op::AddI, 1, 0, 1), asm(Op::Jmp, 0, 0, rel(1, 0))]);
    let remote = m.cpu.remote().clone();
    m.cpu.env_mut().stop_at_poll = 3;
    let kicker = std::thread::spawn(move || {
        for _ in 0..1000 {
            std::thread::sleep(Duration::from_millis(2));
            remote.kick();
        }
    });
    assert_eq!(m.cpu.run(), 77);
    assert_eq!(m.cpu.env().polls, 3);
    drop(m);
    kicker.join().unwrap();
}

#[test]
fn an_indirect_loop_is_left_for_a_kick() {
    let mut m = machine(&[
        asm(Op::MovI, 2, 0, CODE as i32 + LEN as i32),
        asm(Op::AddI, 1, 0, 1),
        asm(Op::Kick, 0, 0, 0),
        asm(Op::JmpR, 2, 0, 0),
    ]);
    m.cpu.env_mut().stop_at_poll = 10;
    assert_eq!(m.cpu.run(), 77);
    assert_eq!(m.cpu.env().r[1], 9);
}

#[test]
fn the_shadow_runs_one_instruction_before_events() {
    let mut m = machine(&[
        asm(Op::MovI, 2, 0, CODE as i32 + 4 * LEN as i32),
        asm(Op::Shadow, 0, 0, 0),
        asm(Op::JmpR, 2, 0, 0),
        asm(Op::Halt, 0, 0, 0),
        asm(Op::AddI, 1, 0, 1),
        asm(Op::Halt, 0, 0, 0),
    ]);
    assert_eq!(m.cpu.run(), 0);
    assert_eq!(m.cpu.env().polled_at, [CODE, CODE + 4 * LEN]);
    assert_eq!(m.cpu.env().r[1], 1);
}

#[test]
fn a_tiny_cache_evicts_and_goes_on() {
    // More code than the cache holds, run three times over.
    let mut env = ToyEnv::new();
    env.identity();
    env.pc = CODE;
    let cache = CodeCache::with_segments(3, 4 << 10).unwrap();
    let mut m = machine_with(cache, Options { max_insns: 8, ..Options::default() }, env);
    let mut insns = vec![asm(Op::MovI, 0, 0, 3)];
    let count = 3000;
    for i in 0..count {
        insns.push(asm(Op::AddI, 1 + (i % 3) as u8, 0, 1));
    }
    insns.push(asm(Op::AddI, 0, 0, -1));
    insns.push(asm(Op::Jnz, 0, 0, rel(count + 2, 1)));
    insns.push(asm(Op::Halt, 0, 0, 0));
    m.memory.poke(CODE, &program(&insns));
    assert_eq!(m.cpu.run(), 0);
    assert_eq!(m.cpu.env().r[1..4], [count as u64; 3]);
    let stats = m.cpu.stats();
    assert!(stats.blocks.segments > 10, "{stats:?}");
    assert!(stats.live_blocks < 300, "{stats:?}");
}

#[test]
fn address_spaces_and_flushes_are_exact_for_code() {
    // 0x8000 is different code in spaces 1 and 2, and changes in space 1.
    let (one, two, three) = (0x8000u64, 0x9000u64, 0xa000u64);
    let back = CODE as i32 + 2 * LEN as i32;
    let mut m = machine(&[
        asm(Op::MovI, 3, 0, back),
        asm(Op::JmpR, 2, 0, 0),
        asm(Op::AddI, 0, 0, -1),
        asm(Op::Jnz, 0, 0, rel(3, 1)),
        asm(Op::Halt, 0, 0, 0),
    ]);
    for (phys, n) in [(one, 1), (two, 0x100), (three, 0x10000)] {
        m.memory.poke(phys, &program(&[asm(Op::AddI, 1, 0, n), asm(Op::JmpR, 3, 0, 0)]));
    }
    let env = m.cpu.env_mut();
    env.map(2, CODE, CODE);
    env.map(2, one, two);
    let mut run = |space: u64, expect: u64| {
        let env = m.cpu.env_mut();
        (env.space, env.pc) = (space, CODE);
        env.r[0] = 5;
        env.r[1] = 0;
        env.r[2] = one;
        softmmu::switch_space::<Toy>(env);
        assert_eq!(m.cpu.run(), 0);
        assert_eq!(m.cpu.env().r[1], 5 * expect, "space {space}");
    };
    for _ in 0..3 {
        run(1, 1);
        run(2, 0x100);
    }
    m.cpu.env_mut().map(1, one, three);
    let mut run = |space: u64, expect: u64, flush: bool| {
        let env = m.cpu.env_mut();
        (env.space, env.pc) = (space, CODE);
        env.r[0] = 5;
        env.r[1] = 0;
        softmmu::switch_space::<Toy>(env);
        if flush {
            softmmu::flush_page::<Toy>(env, 1, one);
        }
        assert_eq!(m.cpu.run(), 0);
        assert_eq!(m.cpu.env().r[1], 5 * expect, "space {space}");
    };
    run(2, 0x100, false);
    run(2, 0x100, true);
    run(1, 0x10000, false);
}

#[test]
fn code_outside_of_memory_runs_an_instruction_at_a_time() {
    // MMIO reads as its address: byte 0 of the page is 0, which is `Halt`.
    let mut m = machine(&[asm(Op::MovI, 2, 0, super::super::toy::RAM as i32), asm(Op::JmpR, 2, 0, 0)]);
    assert_eq!(m.cpu.run(), 0);
    assert_eq!(m.cpu.env().pc, super::super::toy::RAM + LEN);
    assert_eq!(m.cpu.stats().translated_once, 1);
}

#[test]
fn writes_by_others_invalidate() {
    let mut m = machine(&counting_loop(10));
    assert_eq!(m.cpu.run(), 0);
    assert_eq!(m.cpu.env().r[1], 30);
    m.memory.poke(CODE + LEN, &asm(Op::AddI, 1, 0, 5));
    m.cpu.remote().written(CODE + LEN, 6);
    m.cpu.env_mut().pc = CODE;
    assert_eq!(m.cpu.run(), 0);
    assert_eq!(m.cpu.env().r[1], 30 + 50);
    m.cpu.remote().layout_changed();
    m.cpu.env_mut().pc = CODE;
    assert_eq!(m.cpu.run(), 0);
    assert_eq!(m.cpu.env().r[1], 30 + 100);
    assert_eq!(m.cpu.stats().blocks.cleared, 1);
}

#[test]
fn code_that_changes_back_is_not_translated_again() {
    // The jump has two bytes on the first page and four on the second.
    let mut m = machine(&[asm(Op::Jmp, 0, 0, 0xffe - LEN as i32)]);
    let at = 0x1ffe - LEN;
    m.memory.poke(0x3000, &program(&[asm(Op::Halt, 0, 0, 0)]));
    let jump = asm(Op::Jmp, 0, 0, 0x3000 - (at + LEN) as i32);
    let mut run = |add: i32, jump: [u8; 6]| {
        m.memory.poke(at, &program(&[asm(Op::AddI, 1, 0, add), jump]));
        m.cpu.remote().written(at, 2 * LEN);
        let env = m.cpu.env_mut();
        (env.pc, env.r[1]) = (CODE, 0);
        assert_eq!(m.cpu.run(), 0);
        assert_eq!(m.cpu.env().r[1], add as u64);
        let stats = m.cpu.stats();
        (stats.translated, stats.blocks.revived)
    };
    assert_eq!(run(1, jump), (3, 0));
    assert_eq!(run(2, jump), (4, 0));
    // In turn; what was written is not looked at until the block is wanted, so that its bytes count, not the writes.
    for n in 1..=10 {
        assert_eq!(run(1, jump), (4, 2 * n - 1));
        assert_eq!(run(2, jump), (4, 2 * n));
    }
    // Of many versions some are forgotten, of few none.
    let mut last = (0, 0);
    for add in 100..120 {
        last = run(add, jump);
    }
    assert_eq!(last, (24, 20));
    assert_eq!(run(118, jump), (24, 21));
    assert_eq!(run(100, jump), (25, 21));
    // The second page counts, too: the same bytes on the first.
    m.memory.poke(0x4000, &program(&[asm(Op::Halt, 0, 0, 0)]));
    let farther = asm(Op::Jmp, 0, 0, 0x4000 - (at + LEN) as i32);
    assert_eq!(jump[..2], farther[..2]);
    m.memory.poke(at, &program(&[asm(Op::AddI, 1, 0, 100), farther]));
    m.cpu.remote().written(0x2000, 4);
    m.cpu.env_mut().pc = CODE;
    assert_eq!(m.cpu.run(), 0);
    assert_eq!((m.cpu.env().pc, m.cpu.stats().blocks.revived), (0x4000 + LEN, 21));
}

#[test]
fn a_breakpoint_is_seen_in_code_that_changes_back() {
    let mut m = machine(&counting_loop(10));
    assert_eq!(m.cpu.run(), 0);
    let add = CODE + LEN;
    let write = |m: &mut Machine, by: i32| {
        m.memory.poke(add, &asm(Op::AddI, 1, 0, by));
        m.cpu.remote().written(add, LEN);
        m.cpu.env_mut().pc = CODE;
    };
    write(&mut m, 5);
    assert_eq!(m.cpu.run(), 0);
    m.cpu.set_breakpoints(&[add]);
    write(&mut m, 3);
    assert_eq!(m.cpu.run(), BREAKPOINT);
    assert_eq!(m.cpu.env().pc, add);
    write(&mut m, 5);
    assert_eq!(m.cpu.run(), BREAKPOINT);
    m.cpu.set_breakpoints(&[]);
    write(&mut m, 3);
    m.cpu.env_mut().r = Default::default();
    assert_eq!(m.cpu.run(), 0);
    assert_eq!(m.cpu.env().r[1], 30);
}

#[test]
fn a_store_that_changes_nothing_invalidates_nothing() {
    let mut m = rewriting(100, 7, asm(Op::MovI, 5, 0, 7));
    assert_eq!(m.cpu.run(), 0);
    assert_eq!(m.cpu.env().r[1], 700);
    assert_eq!(m.cpu.stats().blocks.invalidated, 0);
}

/// Switches between two spaces 1000 times, running code in each: at different addresses if it is local, because what is
/// at one address competes for an entry of the jump cache; all code around it is global or local.
fn ping_pong(global: bool) -> Stats {
    let (one, two) = (0x8000u64, 0x9123u64);
    let mut m = machine(&[
        asm(Op::MovI, 0, 0, 1000),
        asm(Op::MovI, 4, 0, 2),
        asm(Op::SetSpace, 4, 0, 0),
        asm(Op::Load, 4, 5, 0x100),
        asm(Op::Load, 2, 5, 0x200),
        asm(Op::JmpR, 2, 0, 0),
        asm(Op::AddI, 0, 0, -1),
        asm(Op::Jnz, 0, 0, rel(7, 2)),
        asm(Op::Halt, 0, 0, 0),
    ]);
    let data = 0xc000u64;
    // In each space the number of the other one, and where to go.
    for (space, phys, n, pc) in [(1, one, 1, one), (2, two & !0xfff, 0x100, two)] {
        let code = program(&[asm(Op::AddI, 1, 0, n), asm(Op::JmpR, 3, 0, 0)]);
        m.memory.poke(phys + (pc & 0xfff), &code);
        let at = data + space * PAGE_SIZE;
        m.memory.poke(at + 0x100, &[3 - space as u8]);
        m.memory.poke(at + 0x200, &pc.to_le_bytes());
        m.cpu.env_mut().map(space, data, at);
        m.cpu.env_mut().map(space, pc & !0xfff, phys).global = global;
    }
    let env = m.cpu.env_mut();
    env.r[3] = CODE + 6 * LEN;
    env.r[5] = data;
    if global {
        env.map(1, CODE, CODE).global = true;
    } else {
        env.map(2, CODE, CODE);
    }
    softmmu::flush_all::<Toy>(env);
    assert_eq!(m.cpu.run(), 0);
    assert_eq!(m.cpu.env().r[1], 500 + 500 * 0x100);
    assert_eq!(m.cpu.stats().mmu.cold_switches, 2, "each space once");
    m.cpu.stats()
}

#[test]
fn switching_spaces_keeps_global_code_warm() {
    let stats = ping_pong(true);
    assert!(stats.lookups < 30 && stats.mmu.fetch_walks < 10, "{stats:?}");
    let stats = ping_pong(false);
    assert!(stats.mmu.fetch_walks < 10, "{stats:?}");
}

#[test]
fn local_code_is_not_entered_under_a_shared_tag() {
    // Global code jumps to an address that is local, and different, in each space.
    let there = 0x8000u64;
    let mut m = machine(&[
        asm(Op::MovI, 0, 0, 100),
        asm(Op::MovI, 4, 0, 2),
        asm(Op::SetSpace, 4, 0, 0),
        asm(Op::MovI, 2, 0, there as i32),
        asm(Op::JmpR, 2, 0, 0),
        asm(Op::AddI, 0, 0, -1),
        asm(Op::Jnz, 0, 0, rel(6, 2)),
        asm(Op::Halt, 0, 0, 0),
    ]);
    for (space, phys, n) in [(1, 0x8000, 1), (2, 0x9000, 0x100)] {
        let code = [asm(Op::AddI, 1, 0, n), asm(Op::MovI, 4, 0, 3 - space), asm(Op::JmpR, 3, 0, 0)];
        m.memory.poke(phys, &program(&code));
        m.cpu.env_mut().map(space as u64, there, phys);
    }
    let env = m.cpu.env_mut();
    env.r[3] = CODE + 5 * LEN;
    env.map(1, CODE, CODE).global = true;
    softmmu::flush_all::<Toy>(env);
    assert_eq!(m.cpu.run(), 0);
    assert_eq!(m.cpu.env().r[1], 50 + 50 * 0x100);
}

#[test]
fn a_loop_through_a_block_on_two_pages_stays_in_generated_code() {
    let mut m = machine(&[]);
    let at = |n: u64| 0x1fd0 + n * LEN;
    m.memory.poke(at(0), &program(&[asm(Op::MovI, 0, 0, 10_000), asm(Op::Jmp, 0, 0, 0x1ffd - at(1) as i32)]));
    let rest = [
        asm(Op::AddI, 1, 0, 1),
        asm(Op::AddI, 0, 0, -1),
        asm(Op::Jnz, 0, 0, at(1) as i32 - (0x1ffd + 2 * LEN as i32)),
        asm(Op::Halt, 0, 0, 0),
    ];
    m.memory.poke(0x1ffd, &program(&rest));
    m.cpu.env_mut().pc = at(0);
    assert_eq!(m.cpu.run(), 0);
    assert_eq!(m.cpu.env().r[1], 10_000);
    let stats = m.cpu.stats();
    assert!(stats.entries < 20, "{stats:?}");
    // The way there is still right when the second page becomes another one.
    m.memory.poke(0x5000, &program(&rest)[3..]);
    m.memory.poke(0x5000, &[1]);
    let env = m.cpu.env_mut();
    env.map(1, 0x2000, 0x5000);
    softmmu::flush_page::<Toy>(env, 1, 0x2000);
    (env.pc, env.r[1]) = (at(0), 0);
    assert_eq!(m.cpu.run(), 0);
    assert_eq!(m.cpu.env().r[1], 10_000 * 0x101);
}

#[test]
fn an_instruction_that_is_run_alone_again_is_translated_once() {
    // Stores by a helper to code, over and over, from the same instruction.
    let mut m = machine(&[
        asm(Op::MovI, 0, 0, 10),
        asm(Op::MovI, 2, 0, 0x3000),
        asm(Op::MovI, 3, 0, CODE as i32 + 4 * LEN as i32),
        asm(Op::JmpR, 2, 0, 0),
        asm(Op::Load, 4, 2, 0),
        asm(Op::AddI, 4, 0, 1 << 16), // the immediate
        asm(Op::HelperStore, 4, 2, 0),
        asm(Op::AddI, 0, 0, -1),
        asm(Op::Jnz, 0, 0, rel(8, 3)),
        asm(Op::Halt, 0, 0, 0),
    ]);
    m.memory.poke(0x3000, &program(&[asm(Op::AddI, 1, 0, 1), asm(Op::JmpR, 3, 0, 0)]));
    assert_eq!(m.cpu.run(), 0);
    assert_eq!(m.cpu.env().r[1], (1..=10).sum());
    let stats = m.cpu.stats();
    assert_eq!((stats.translated_once, stats.blocks.invalidated), (1, 10));
}

#[test]
fn breakpoints_stop_before_their_instruction_and_cost_other_blocks_nothing() {
    let mut m = machine(&counting_loop(1000));
    // Translated and linked before anybody asks for a breakpoint.
    m.cpu.set_breakpoints(&[]);
    assert_eq!(m.cpu.run(), 0);
    let (add, end) = (CODE + 2 * LEN, CODE + 4 * LEN);
    let restart = |m: &mut Machine| m.cpu.env_mut().pc = CODE;

    restart(&mut m);
    m.cpu.env_mut().r = Default::default();
    m.cpu.set_breakpoints(&[add, end, add]);
    for round in 1..=3u64 {
        assert_eq!(m.cpu.run(), BREAKPOINT);
        assert_eq!((m.cpu.env().pc, m.cpu.env().r[1]), (add, 3 * round), "before the addition");
        // As long as nobody steps over it, it stays there.
        assert_eq!(m.cpu.run(), BREAKPOINT);
        assert_eq!(m.cpu.run_one(), None);
        assert_eq!(m.cpu.env().pc, add + LEN);
    }
    // The same set again changes nothing.
    let translated = m.cpu.stats().translated;
    m.cpu.set_breakpoints(&[end, add]);
    assert_eq!(m.cpu.run(), BREAKPOINT);
    assert!(m.cpu.stats().translated <= translated + 1);

    m.cpu.set_breakpoints(&[end]);
    assert_eq!(m.cpu.run(), BREAKPOINT);
    assert_eq!((m.cpu.env().pc, m.cpu.env().r[0], m.cpu.env().r[1]), (end, 0, 3000));
    m.cpu.set_breakpoints(&[]);
    assert_eq!(m.cpu.run(), 0);
    // No trace is left: the whole program again.
    restart(&mut m);
    assert_eq!(m.cpu.run(), 0);
}

#[test]
fn a_listing_shows_code_and_changes_nothing() {
    let mut m = machine(&counting_loop(10));
    m.cpu.set_breakpoints(&[CODE]);
    let listing = m.cpu.list(CODE).unwrap();
    assert!(listing.guest.len() as u64 >= LEN && !listing.host.is_empty());
    assert!(!listing.ir.contains("leave 4294967295"), "{}", listing.ir);
    assert_eq!(m.cpu.stats().live_blocks, 0);
    assert_eq!(m.cpu.run(), BREAKPOINT);
}
