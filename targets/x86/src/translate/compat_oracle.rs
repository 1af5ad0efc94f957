//! The silicon as oracle for what exists in 16- and 32-bit code alone: decimal adjustment and SALC, for all values of AL, in
//! compatibility mode. All flags are compared, those that the manual leaves undefined, too.
//!
//! A 64-bit Linux process may jump to the kernel's 32-bit code segment. The native code is below 4 GiB: a stub in 64-bit code
//! that switches stacks and calls far, and 32-bit code that loads EAX and the flags, runs the instruction, stores both
//! and returns far.

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use tessera_tcg::interp::{self, End};

use super::oracle::{CODE_AT, FLAGS, Model, Rng, environment, guest_info, translate};
use crate::state::{mode, pack_flags, reg, unpack_flags};

/// Linux's selectors of flat 32-bit code and data for programs.
const CODE32: u16 = 0x23;
const DATA32: u32 = 0x2b;

/// Three pages below 4 GiB: code, a page for data, the stack.
struct Native {
    base: u32,
}

const PAGE: u32 = 4096;
/// In the data page: EAX and flags before, EAX and flags after, the host's RSP, the far pointer to the 32-bit code.
const SAVED_RSP: u32 = PAGE + 16;
const FAR_POINTER: u32 = PAGE + 24;
/// In the code page.
const CODE32_AT: u32 = 1024;

impl Native {
    /// `None` if no memory below 4 GiB can be had.
    fn new(instruction: &[u8]) -> Option<Native> {
        let hint = 0x1000_0000usize as *mut std::ffi::c_void;
        let bytes = 3 * PAGE as usize;
        // SAFETY: new memory; the address is a hint.
        let at = unsafe {
            mmap_anonymous(hint, bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE).ok()?
        };
        let Ok(base) = u32::try_from(at as usize) else {
            // SAFETY: mapped above.
            unsafe { munmap(at, bytes).ok()? };
            return None;
        };
        let native = Native { base };
        native.write(0, &native.stub());
        native.write(CODE32_AT, &native.code32(instruction));
        let mut pointer = (base + CODE32_AT).to_le_bytes().to_vec();
        pointer.extend(CODE32.to_le_bytes());
        native.write(FAR_POINTER, &pointer);
        // SAFETY: the first page of the mapping.
        unsafe { mprotect(at, PAGE as usize, MprotectFlags::READ | MprotectFlags::EXEC).ok()? };
        Some(native)
    }

    fn stub(&self) -> Vec<u8> {
        let absolute = |offset: u32| (self.base + offset).to_le_bytes();
        let mut c = vec![0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57];
        c.extend([0x48, 0x89, 0x24, 0x25]); // mov [saved], rsp
        c.extend(absolute(SAVED_RSP));
        c.push(0xbc); // mov esp, top of the stack
        c.extend(absolute(3 * PAGE - 64));
        c.extend([0xff, 0x1c, 0x25]); // call far [pointer]
        c.extend(absolute(FAR_POINTER));
        c.extend([0x48, 0x8b, 0x24, 0x25]); // mov rsp, [saved]
        c.extend(absolute(SAVED_RSP));
        c.extend([0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b, 0xc3]);
        c
    }

    fn code32(&self, instruction: &[u8]) -> Vec<u8> {
        let data = self.base + PAGE;
        let mut c = vec![0xb8]; // mov eax, selector; mov ds, eax; mov ebx, data
        c.extend(DATA32.to_le_bytes());
        c.extend([0x8e, 0xd8, 0xbb]);
        c.extend(data.to_le_bytes());
        c.extend([0xff, 0x73, 4, 0x9d, 0x8b, 0x03]); // push [ebx + 4]; popfd; mov eax, [ebx]
        c.extend(instruction);
        c.extend([0x89, 0x43, 8, 0x9c, 0x8f, 0x43, 12, 0xcb]); // mov [ebx + 8], eax; pushfd; pop [ebx + 12]; retf
        c
    }

    fn write(&self, offset: u32, bytes: &[u8]) {
        let to = (self.base + offset) as usize as *mut u8;
        // SAFETY: within the mapping, which this value owns.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    /// EAX and flags after the instruction.
    fn run(&self, eax: u32, flags: u32) -> (u32, u32) {
        self.write(PAGE, &eax.to_le_bytes());
        self.write(PAGE + 4, &(flags | 0x202).to_le_bytes());
        // SAFETY: the stub keeps to the C calling convention; the instruction under test changes EAX and flags alone. Nothing
        // but DS is different afterwards, which 64-bit code ignores.
        unsafe {
            std::mem::transmute::<*const u8, extern "C" fn()>(self.base as usize as *const u8)();
            let out = (self.base + PAGE + 8) as usize as *const u32;
            (out.read(), out.add(1).read())
        }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: nothing refers to the mapping any more.
        let _ = unsafe { munmap(self.base as usize as *mut std::ffi::c_void, 3 * PAGE as usize) };
    }
}

#[test]
fn decimal_instructions_agree_with_silicon() {
    let mut instructions: Vec<Vec<u8>> = [0x27, 0x2f, 0x37, 0x3f, 0xd6].map(|b| vec![b]).into();
    for base in [1, 7, 10, 16, 0x80, 0xff] {
        instructions.extend([vec![0xd4, base], vec![0xd5, base]]);
    }
    instructions.push(vec![0xd5, 0]);
    let mut env = environment();
    env.mode = mode::CODE32 | mode::STACK32 | mode::PROTECTED;
    let guest = guest_info();
    let mut rng = Rng(1);
    let mut differ = String::new();
    for code in instructions {
        let Some(native) = Native::new(&code) else {
            println!("skipped: no memory below 4 GiB");
            return;
        };
        let block = translate(&env, &code);
        let (mut flags_differ, mut example) = (0, None);
        for case in 0..256 * 5 * 4 {
            let ah = [0, 1, 5, 0x99, 0xff][case / 256 % 5];
            let eax = rng.next() as u32 & 0xffff_0000 | ah << 8 | case as u32 & 0xff;
            let flags = rng.next() & FLAGS;
            env.gpr[reg::RAX] = eax as u64;
            env.flags = pack_flags(flags);
            let end = interp::run(&block, &guest, &mut Model::without_memory(&mut env));
            assert!(
                matches!(end, End::Exit(x) if block.exits[x.0 as usize].pc == CODE_AT + code.len() as u64)
            );
            let ours = (env.gpr[reg::RAX] as u32, unpack_flags(env.flags) & FLAGS);
            let (eax_after, flags_after) = native.run(eax, flags as u32);
            let theirs = (eax_after, flags_after as u64 & FLAGS);
            if ours != theirs {
                flags_differ |= ours.1 ^ theirs.1;
                example.get_or_insert((eax, flags, ours, theirs));
            }
        }
        if let Some(example) = example {
            differ += &format!("{code:02x?}: flags {flags_differ:#x}, from {example:x?}\n");
        }
    }
    assert!(differ.is_empty(), "{differ}");
}
