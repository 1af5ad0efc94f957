//! What the programs are written with: checks, expectations, exceptions, table entries, code for ring 3.
//!
//! A program runs in its *home* mode: real mode, 32-bit protected mode or 64-bit mode, ring 0, interrupts off, flat segments. A
//! check starts with fresh descriptor tables, control registers, debug registers, task and segments, so that it may change
//! all of them. It may end anywhere: an exception that nobody expects ends it with a report, and the next one begins.
//!
//! Conventions: variables are reached by DS, which must be flat (in real mode 0) at an expectation. Expectations keep general
//! registers and flags, except where they say otherwise.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use iced_x86::code_asm::*;
use tessera_asm::{Code, R, Symbols};

use crate::kvm;
use crate::layout::*;
use crate::tables::tss;

/// Emits instructions: `code!(k; mov(eax, 1); mov(cr3, eax))`. Arguments may ask the kit for addresses.
macro_rules! code {
    ($k:ident; $($name:ident ( $($arg:expr),* $(,)? ) );* $(;)?) => {{ $( code!(@one $k $name $($arg),*); )* }};
    (@one $k:ident $name:ident) => { $k.$name()? };
    (@one $k:ident $name:ident $a:expr) => { { let a = $a; $k.$name(a)? } };
    (@one $k:ident $name:ident $a:expr, $b:expr) => { { let (a, b) = ($a, $b); $k.$name(a, b)? } };
    (@one $k:ident $name:ident $a:expr, $b:expr, $c:expr) => { { let (a, b, c) = ($a, $b, $c); $k.$name(a, b, c)? } };
}
pub(crate) use code;

/// A check of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What the guest prints.
    pub name: String,
    /// Where the manual says what is expected: volume and section of the Intel SDM.
    pub source: &'static str,
    /// Why it is left out of this variant of the program.
    pub left_out: Option<&'static str>,
}

/// What a program is assembled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// A complete processor.
    Full,
    /// KVM: without the checks that `kvm.rs` lists.
    Kvm,
}

/// Shared by all sections of a program in one pass.
pub struct Plan {
    /// The program's name.
    pub program: &'static str,
    pub variant: Variant,
    /// Bitness of the home mode.
    pub home: u32,
    /// Levels of the page tables in 64-bit mode.
    pub levels: u32,
    /// What the section's offset in linear addresses is for ring 3.
    pub alias: u32,
    pub checks: RefCell<Vec<Check>>,
}

/// Where an exception's saved instruction pointer points.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Saved {
    /// At the instruction (faults).
    This,
    /// Behind it (traps).
    Next,
    /// At this offset.
    At(u32),
    /// The check looks for itself, or the manual leaves it open.
    Any,
}

/// An expected exception.
#[derive(Clone, Copy, Debug)]
pub struct Exc {
    vector: u32,
    error: u32,
    saved: Saved,
}

impl Exc {
    /// The exception, as a fault.
    pub const fn fault(vector: u32, error: u32) -> Exc {
        Exc { vector, error, saved: Saved::This }
    }
    /// As a trap.
    pub const fn trap(self) -> Exc {
        Exc { saved: Saved::Next, ..self }
    }
    /// With this saved instruction pointer.
    pub const fn at(self, ip: u32) -> Exc {
        Exc { saved: Saved::At(ip), ..self }
    }
    /// Whether the saved instruction pointer is that behind the instruction.
    pub fn is_trap(self) -> bool {
        self.saved == Saved::Next
    }
    pub const fn vector(self) -> u32 {
        self.vector
    }
    /// With any saved instruction pointer.
    pub const fn anywhere(self) -> Exc {
        Exc { saved: Saved::Any, ..self }
    }
}

pub const DE: Exc = Exc::fault(0, 0);
pub const DB: Exc = Exc::fault(1, 0);
pub const BP: Exc = Exc::fault(3, 0).trap();
pub const OF: Exc = Exc::fault(4, 0).trap();
pub const BR: Exc = Exc::fault(5, 0);
pub const UD: Exc = Exc::fault(6, 0);
pub const NM: Exc = Exc::fault(7, 0);
pub const DF: Exc = Exc::fault(8, 0).anywhere();
pub const MF: Exc = Exc::fault(16, 0);
pub const AC: Exc = Exc::fault(17, 0);
pub const XM: Exc = Exc::fault(19, 0);
/// #TS, #NP, #SS, #GP and #PF with an error code.
pub const fn ts(error: u32) -> Exc {
    Exc::fault(10, error)
}
pub const fn np(error: u32) -> Exc {
    Exc::fault(11, error)
}
pub const fn sf(error: u32) -> Exc {
    Exc::fault(12, error)
}
pub const fn gp(error: u32) -> Exc {
    Exc::fault(13, error)
}
pub const fn pf(error: u32) -> Exc {
    Exc::fault(14, error)
}
/// An INT n without an error code.
pub const fn int(vector: u32) -> Exc {
    Exc::fault(vector, 0).trap()
}

/// One section of a program while it is being emitted.
pub struct Kit<'a> {
    pub code: &'a mut Code,
    pub s: &'a Symbols,
    pub plan: &'a Rc<Plan>,
}

impl Deref for Kit<'_> {
    type Target = Code;
    fn deref(&self) -> &Code {
        self.code
    }
}

impl DerefMut for Kit<'_> {
    fn deref_mut(&mut self) -> &mut Code {
        self.code
    }
}

impl Kit<'_> {
    /// Branch target in code of this bitness.
    pub fn to(&self, label: &str) -> u64 {
        self.s.to(self.bits(), label)
    }

    /// Linear address of a label.
    pub fn imm(&self, label: &str) -> u32 {
        self.s.imm(label)
    }

    /// Offset of a label in the real-mode segment.
    pub fn off(&self, label: &str) -> u32 {
        self.s.off(label)
    }

    /// Linear address of a label as ring 3 sees it.
    pub fn user_imm(&self, label: &str) -> u32 {
        self.s.imm(label) + self.plan.alias
    }

    /// Calls a routine of the runtime, with arguments behind the call.
    pub fn routine(&mut self, name: &str, arguments: &[u32]) -> R {
        let target = self.to(name);
        self.call(target)?;
        let bytes: Vec<u8> = arguments.iter().flat_map(|value| value.to_le_bytes()).collect();
        if bytes.is_empty() { Ok(()) } else { self.db(&bytes) }
    }

    /// A check. `source` is volume and section of the Intel SDM.
    pub fn check(&mut self, name: &str, source: &'static str, body: impl FnOnce(&mut Kit) -> R) -> R {
        let listed =
            if self.plan.variant == Variant::Kvm { kvm::left_out(self.plan.program, name) } else { None };
        self.plan.checks.borrow_mut().push(Check { name: name.into(), source, left_out: listed });
        if listed.is_some() {
            return Ok(());
        }
        let end = self.fresh();
        let arguments = [self.s.text(name), self.to(&end) as u32];
        self.routine("begin", &arguments)?;
        body(self)?;
        self.label(&end)?;
        self.routine("finish", &[])
    }

    /// Expects a value in a 32-bit register.
    pub fn eq(&mut self, what: &str, got: AsmRegister32, expected: u32) -> R {
        let arguments = [self.s.text(what), expected];
        code!(self; mov(dword_ptr(GOT), got); routine("differs32", &arguments));
        Ok(())
    }

    /// Expects a value in a 64-bit register.
    pub fn eq64(&mut self, what: &str, got: AsmRegister64, expected: u64) -> R {
        let arguments = [self.s.text(what), expected as u32, (expected >> 32) as u32];
        code!(self; mov(qword_ptr(GOT), got); routine("differs64", &arguments));
        Ok(())
    }

    /// Expects a doubleword in memory. Clobbers EAX.
    pub fn var(&mut self, what: &str, address: u32, expected: u32) -> R {
        self.masked(what, address, 0xFFFF_FFFF, expected)
    }

    /// Expects some bits of a doubleword in memory. Clobbers EAX and flags.
    pub fn masked(&mut self, what: &str, address: u32, mask: u32, expected: u32) -> R {
        if address <= 0xFFFF || self.bits() != 16 {
            code!(self; mov(eax, dword_ptr(address)));
        } else {
            code!(self; mov(eax, address); mov(eax, dword_ptr(eax)));
        }
        if mask != 0xFFFF_FFFF {
            code!(self; and(eax, mask));
        }
        self.eq(what, eax, expected)
    }

    /// Expects a quadword in memory. Clobbers RAX. 64-bit code only.
    pub fn var64(&mut self, what: &str, address: u32, expected: u64) -> R {
        code!(self; mov(rax, qword_ptr(address)));
        self.eq64(what, rax, expected)
    }

    /// Expects the condition on which `jump_if` jumps; reported as 0 instead of 1. Clobbers EAX.
    pub fn holds(&mut self, what: &str, jump_if: fn(&mut CodeAssembler, u64) -> R) -> R {
        let yes = self.fresh();
        let target = self.to(&yes);
        self.code.mov(eax, 1)?;
        jump_if(self.code, target)?;
        self.code.mov(eax, 0)?;
        self.label(&yes)?;
        self.eq(what, eax, 1)
    }

    /// Prepares for an exception: execution goes on at label `after`, with the present stack.
    pub fn arm(&mut self, after: &str) -> R {
        let argument = self.to(after) as u32;
        self.routine("arm", &[argument])
    }

    /// Expects the exception that [`Kit::arm`] prepared for, with this saved instruction pointer if any.
    pub fn seen(&mut self, what: &str, exc: Exc, ip: Option<u32>) -> R {
        let arguments =
            [self.s.text(what), exc.vector, exc.error, u32::from(ip.is_none()), ip.unwrap_or_default()];
        self.routine("seen", &arguments)
    }

    /// Expects an exception of the one instruction that `emit` emits. Registers are what they were at the exception, except
    /// segments, stack pointer and flags.
    pub fn raises(&mut self, what: &str, exc: Exc, emit: impl FnOnce(&mut Kit) -> R) -> R {
        let (at, after) = (self.fresh(), self.fresh());
        self.arm(&after)?;
        self.label(&at)?;
        // An instruction that faults has shown its fault, not what it does: only those that exist to fault count.
        if exc.saved == Saved::This && !matches!(exc.vector, 5 | 6) {
            self.faulting(emit)?;
        } else {
            emit(self)?;
        }
        self.label(&after)?;
        let ip = match exc.saved {
            Saved::This => Some(self.to(&at) as u32),
            Saved::Next => Some(self.to(&after) as u32),
            Saved::At(ip) => Some(ip),
            Saved::Any => None,
        };
        self.seen(what, exc, ip)
    }

    /// Emits instructions that never complete.
    pub fn faulting(&mut self, emit: impl FnOnce(&mut Kit) -> R) -> R {
        let (s, plan) = (self.s, self.plan);
        self.code.unlisted(|code| emit(&mut Kit { code, s, plan }))
    }

    /// Runs ring 3 code of the home mode's bitness until its last instruction raises an exception. The code sees flat
    /// segments, and with paging runs at [`USER_ALIAS`]. Clobbers EAX before and after.
    pub fn user(&mut self, what: &str, exc: Exc, body: impl FnOnce(&mut Kit) -> R) -> R {
        let (start, end, after) = (self.fresh(), self.fresh(), self.fresh());
        self.arm(&after)?;
        let bits = self.bits();
        if bits == 64 {
            code!(self; push(USER_DATA as i32); mov(eax, STACK3 + self.plan.alias); push(rax); push(2);
                push(USER64 as i32); mov(eax, self.user_imm(&start)); push(rax); iretq());
        } else {
            code!(self; push(USER_DATA); push(STACK3 + self.plan.alias); push(2); push(USER32);
                push(self.user_imm(&start)); mov(eax, USER_DATA); mov(ds, eax); mov(es, eax); iretd());
        }
        self.label(&start)?;
        body(self)?;
        self.label(&end)?;
        // Running over the end is an exception, too, but not the expected one.
        code!(self; unlisted(|c: &mut Code| c.ud2()); label(&after));
        let ip = match exc.saved {
            Saved::Next => Some(self.user_imm(&end)),
            Saved::At(ip) => Some(ip),
            Saved::This | Saved::Any => None,
        };
        self.seen(what, exc, ip)?;
        // CS tells that it was ring 3 that faulted, and not what brought it there.
        self.masked(what, EXC_CS, 3, 3)
    }

    /// Appends code of another bitness, at a label.
    pub fn elsewhere(&mut self, bits: u32, label: &str, body: impl FnOnce(&mut Kit) -> R + 'static) {
        let (plan, label) = (self.plan.clone(), label.to_owned());
        self.code.elsewhere(bits, move |code, s| {
            let mut kit = Kit { code, s, plan: &plan };
            kit.label(&label)?;
            body(&mut kit)
        });
    }

    /// Emits code that is jumped over: a routine of this bitness at a label.
    pub fn aside(&mut self, label: &str, body: impl FnOnce(&mut Kit) -> R) -> R {
        let over = self.fresh();
        code!(self; jmp(self.to(&over)); label(label));
        body(self)?;
        self.label(&over)
    }

    /// Writes 8 bytes to memory. Keeps registers and flags.
    pub fn poke(&mut self, address: u32, value: u64) -> R {
        code!(self; mov(dword_ptr(address), value as u32); mov(dword_ptr(address + 4), (value >> 32) as u32));
        Ok(())
    }

    /// Writes a descriptor into the GDT in use.
    pub fn descriptor(&mut self, selector: u32, value: u64) -> R {
        self.poke(GDT + (selector & !7), value)
    }

    /// Fills a task state segment: the task begins at `eip` on its own stack, with flat segments and the page tables at
    /// `directory`.
    pub fn task(&mut self, segment: u32, directory: u32, eip: u32, stack: u32) -> R {
        for (field, value) in [
            (tss::LINK, 0),
            (tss::CR3, directory),
            (tss::EIP, eip),
            (tss::EFLAGS, 2),
            (tss::ESP, stack),
            (tss::ES, DATA),
            (tss::CS, CODE32),
            (tss::SS, DATA),
            (tss::DS, DATA),
            (tss::FS, DATA),
            (tss::GS, DATA),
            (tss::LDTR, 0),
            (tss::TRAP, 0x68 << 16),
        ] {
            self.mov(dword_ptr(segment + field), value)?;
        }
        Ok(())
    }

    /// Writes a gate into the IDT in use; in 64-bit mode the upper half of the offset is 0.
    pub fn idt(&mut self, vector: u32, value: u64) -> R {
        if self.plan.home == 64 {
            self.poke(IDT + vector * 16, value)?;
            self.poke(IDT + vector * 16 + 8, 0)
        } else {
            self.poke(IDT + vector * 8, value)
        }
    }

    /// Sets or clears bits of CR0, CR4, a model-specific register's lower half. Clobbers EAX (and ECX, EDX).
    pub fn cr0_bits(&mut self, set: u32, clear: u32) -> R {
        self.cr_bits(cr0, set, clear)
    }

    /// See [`Kit::cr0_bits`].
    pub fn cr4_bits(&mut self, set: u32, clear: u32) -> R {
        self.cr_bits(cr4, set, clear)
    }

    fn cr_bits(&mut self, register: AsmRegisterCr, set: u32, clear: u32) -> R {
        if self.bits() == 64 {
            code!(self; mov(rax, register); or(eax, set); and(eax, !clear); mov(register, rax));
        } else {
            code!(self; mov(eax, register); or(eax, set); and(eax, !clear); mov(register, eax));
        }
        Ok(())
    }

    /// Writes a model-specific register. Clobbers EAX, ECX, EDX.
    pub fn msr(&mut self, index: u32, value: u64) -> R {
        code!(self; mov(ecx, index); mov(eax, value as u32); mov(edx, (value >> 32) as u32); wrmsr());
        Ok(())
    }
}
