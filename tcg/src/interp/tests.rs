//! Tests of what the families' own tests do not show: the order of effects, and how blocks end.

use super::*;
use crate::ir::{Builder, Cond, Exit, ExitId, Ext, FlagOp, GlobalSet, MemFlags, VecSize, Width};
use crate::testing::{TestMachine, TestMemory, global, guest, helper};

const MEM: MemFlags = MemFlags { mmu: 0, for_write: false };

fn ir() -> Builder {
    let mut ir = Builder::new(Block::default());
    ir.push(Inst::InsnStart { pc: 0x1000 });
    ir
}

fn exit(ir: &mut Builder, pc: u64) -> ExitId {
    ir.exit(Exit { pc, indirect: false, poll: false, chain: true, dead: GlobalSet::NONE })
}

#[test]
fn a_fault_leaves_the_sets_so_far() {
    let mut ir = ir();
    let one = ir.iconst(1);
    ir.set(global::int(3), one);
    ir.push(Inst::InsnStart { pc: 0x1004 });
    let addr = ir.iconst(0x10);
    let loaded = ir.load(Width::W32, Ext::Zero, addr, MEM);
    ir.set(global::int(3), loaded);
    ir.push(Inst::Leave { code: 0 });
    let mut machine = TestMachine::new(1);
    let end = run(&ir.finish(), &guest(), &mut machine);
    let fault = Exception { vector: TestMemory::FAULT, error: Some(0), address: 0x10 };
    assert_eq!(end, End::Fault(fault));
    assert_eq!((machine.env.int[3], machine.env.pc), (1, 0x1004));
}

#[test]
fn exits_set_the_program_counter() {
    for carry in [false, true] {
        let mut ir = ir();
        let (a, b) = (ir.iconst(1), ir.iconst(1 + carry as u64));
        let f = ir.flags(FlagOp::Sub, Width::W64, a, b);
        let (taken, fall) = (exit(&mut ir, 0x2000), exit(&mut ir, 0x3000));
        ir.push(Inst::Branch { cond: Cond::B, f, taken, fall });
        let mut machine = TestMachine::new(1);
        let end = run(&ir.finish(), &guest(), &mut machine);
        assert_eq!(end, End::Exit(ExitId(!carry as u16)));
        assert_eq!(machine.env.pc, if carry { 0x2000 } else { 0x3000 });
    }
}

#[test]
fn a_store_that_crosses_into_a_page_without_permission_stores_nothing() {
    let mut ir = ir();
    let addr = ir.iconst(TestMemory::BASE + 0xffe);
    let v = ir.iconst(u64::MAX);
    ir.store(Width::W32, addr, v, MEM);
    ir.push(Inst::Leave { code: 0 });
    let mut machine = TestMachine::new(1);
    let before = machine.memory.clone();
    let end = run(&ir.finish(), &guest(), &mut machine);
    let address = TestMemory::BASE + 0x1000;
    assert_eq!(end, End::Fault(Exception { vector: TestMemory::FAULT, error: Some(1), address }));
    assert_eq!(machine.memory, before);
}

#[test]
fn the_narrow_view_of_a_vector_keeps_and_hides_the_high_half() {
    let mut ir = ir();
    let addr = ir.iconst(TestMemory::BASE);
    let whole = ir.load_vec(VecSize::B32, addr, MEM);
    ir.set(global::x(0), whole);
    let low = ir.get(global::x(0));
    ir.set(global::y(1), low);
    ir.push(Inst::Leave { code: 0 });
    let mut machine = TestMachine::new(1);
    let before = machine.env.vec[0];
    run(&ir.finish(), &guest(), &mut machine);
    let loaded: Word4 = words(std::array::from_fn(|i| machine.memory.bytes[i]));
    assert_eq!(machine.env.vec[0], [loaded[0], loaded[1], before[2], before[3]]);
    assert_eq!(machine.env.vec[1], [loaded[0], loaded[1], 0, 0]);
}

#[test]
fn atomics_return_the_old_value_and_need_write_permission() {
    let mut ir = ir();
    let addr = ir.iconst(TestMemory::BASE + 8);
    let (five, six) = (ir.iconst(0xff05), ir.iconst(6));
    ir.store(Width::W16, addr, five, MEM);
    let op = crate::ir::RmwOp::Add;
    let old = ir.push(Inst::AtomicRmw { op, width: Width::W8, addr, v: six, mem: MEM });
    ir.set(global::int(0), old);
    let expect = ir.iconst(0xff0b);
    let seen = ir.push(Inst::AtomicCas { width: Width::W16, addr, expect, new: six, mem: MEM });
    ir.set(global::int(1), seen);
    // Does not match and would not store, but the page is read-only.
    let read_only = ir.iconst(TestMemory::BASE + 0x1000);
    ir.push(Inst::InsnStart { pc: 0x1004 });
    ir.push(Inst::AtomicCas { width: Width::W64, addr: read_only, expect, new: six, mem: MEM });
    ir.push(Inst::Leave { code: 0 });
    let mut machine = TestMachine::new(1);
    let end = run(&ir.finish(), &guest(), &mut machine);
    assert!(matches!(end, End::Fault(Exception { error: Some(1), .. })), "{end:?}");
    assert_eq!(machine.env.int[..2], [5, 0xff0b]);
    assert_eq!(machine.memory.bytes[8..10], [6, 0]);
}

#[test]
fn a_helper_that_faults_ends_the_block() {
    for (arg, end) in [(1, End::Leave(4)), (8, End::Fault(Exception { vector: 13, error: None, address: 8 }))]
    {
        let mut ir = ir();
        let a = ir.iconst(arg);
        ir.call(helper::MAY_FAULT, &[a]);
        ir.push(Inst::Leave { code: 4 });
        let mut machine = TestMachine::new(1);
        assert_eq!(run(&ir.finish(), &guest(), &mut machine), end);
        assert_eq!(machine.env.header.helper_fault, 0);
    }
}
