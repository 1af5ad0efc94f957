//! Conversion of states, and short programs run by both engines from the same state to the same state.
//!
//! Where KVM cannot be had the tests say so and pass.

use std::ffi::OsString;

use tessera_hw::boards::pc::{PcConfig, PcMachine};
use tessera_x86::cpu_state::{AVX, InFlight};
use tessera_x86::state::{Cr0, Cr4, Efer, RFlags, TableRegister, reg};

use super::*;
use crate::accel::{Engine, drive, tcg::TcgEngine};
use crate::cli::{self, Invocation, Tcg};

const RAM: u64 = 4 << 20;
/// Where the programs are.
const CODE: u64 = 0x1000;

/// A board and a command line with `-cpu TEXT`.
fn board(cpu: &str) -> (PcMachine, Config) {
    let line = ["-accel", "kvm", "-cpu", cpu].map(OsString::from);
    let Ok(Invocation::Run(config)) = cli::parse(line) else { panic!("-cpu {cpu} is not understood") };
    (PcMachine::build(PcConfig::new(RAM)).unwrap(), *config)
}

/// KVM's engine; `None`, with the reason told, where there is none.
fn kvm(cpu: &str) -> Option<(PcMachine, KvmEngine)> {
    kvm_with(cpu, IrqChip::Off)
}

fn kvm_with(cpu: &str, chip: IrqChip) -> Option<(PcMachine, KvmEngine)> {
    let (board, config) = board(cpu);
    match KvmEngine::new(&board, &config, chip) {
        Ok((engine, _)) => Some((board, engine)),
        Err(Unavailable::Kvm(why)) => {
            eprintln!("skipped: KVM {why}");
            None
        }
        Err(Unavailable::Request(why)) => panic!("{why}"),
    }
}

fn tcg(cpu: &str) -> (PcMachine, TcgEngine) {
    let (board, config) = board(cpu);
    let engine =
        TcgEngine::new(&board, &config, tessera_x86::cpuid::parse(cpu).unwrap(), &Tcg::default()).unwrap();
    (board, engine)
}

fn segment(base: u64, limit: u32, access: u16, selector: u16) -> Segment {
    Segment { base, limit, access, selector }
}

/// A state of a mode in which every register that KVM must keep has a value of its own.
fn state(power_up: &CpuState, mode: &str) -> CpuState {
    let mut s = power_up.clone();
    let mut next = 0x1234_5678_9abc_def0u64;
    let mut number = || {
        next = next.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(0x9e37_79b9_7f4a_7c15);
        next
    };
    s.gpr = std::array::from_fn(|_| number());
    s.rip = CODE;
    s.rflags = (RFlags::ONE | RFlags::CF | RFlags::ZF | RFlags::OF | RFlags::DF).bits();
    s.cr2 = number();
    s.dr = std::array::from_fn(|_| number() & 0x7fff_ffff);
    (s.dr6, s.dr7) = (0xffff_0ff3, 0x400 | 0x2);
    s.gdtr = TableRegister { base: 0x2_1000, limit: 0x7f };
    s.idtr = TableRegister { base: 0x2_2000, limit: 0xfff };
    s.cr8 = 3;
    match mode {
        "real" => {
            for (n, s) in s.segments.iter_mut().enumerate().take(6) {
                let selector = 0x100 * n as u16;
                *s = segment(
                    u64::from(selector) << 4,
                    0xffff,
                    if n == seg::CS { 0x9b } else { 0x93 },
                    selector,
                );
            }
        }
        "protected" => {
            s.cr0 = (Cr0::PE | Cr0::ET | Cr0::NE | Cr0::TS).bits();
            for (n, s) in s.segments.iter_mut().enumerate().take(6) {
                *s = segment(0, u32::MAX, if n == seg::CS { 0xc09b } else { 0xc093 }, 8 * (1 + n as u16));
            }
            s.segments[seg::GS] = segment(0, 0, 0, 0);
        }
        "long" => {
            s.cr0 = (Cr0::PE | Cr0::ET | Cr0::NE | Cr0::WP | Cr0::PG | Cr0::MP).bits();
            s.cr3 = 0x1_0000;
            s.cr4 = (Cr4::PAE | Cr4::PGE | Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::DE).bits();
            s.efer = (Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE).bits();
            for (n, s) in s.segments.iter_mut().enumerate().take(6) {
                *s = segment(0, u32::MAX, if n == seg::CS { 0xa09b } else { 0xc093 }, 8 * (1 + n as u16));
            }
            s.segments[seg::FS].base = 0x7fff_1234_5678;
            s.segments[seg::GS].base = 0xffff_8000_1234_5678;
        }
        _ => panic!("no such mode: {mode}"),
    }
    s.segments[seg::TR] = segment(0x2_0000, 0x67, 0x8b, 0x40);
    s.segments[seg::LDTR] = segment(0x2_3000, 0x1f, 0x82, 0x48);
    s.msrs.star = number();
    s.msrs.lstar = number() >> 20;
    s.msrs.fmask = 0x4_7700;
    s.msrs.kernel_gs_base = number() >> 20;
    s.msrs.sysenter_cs = 0x10;
    s.msrs.sysenter_esp = 0x7_0000;
    s.msrs.sysenter_eip = 0x7_1000;
    s.msrs.pat = 0x0007_0406_0007_0406;
    s.msrs.mtrr_def_type = 0xc06;
    s.msrs.mtrr_var[1] = (0x8000_0006, 0x3f_8000_0800);
    s.msrs.mtrr_fixed[0] = 0x0606_0606_0606_0606;
    s.msrs.tsc_offset = 1 << 40;
    let apic: [(usize, u32); 15] = [
        (0x08, 0x30),
        (0x0d, 0x0200_0000),
        (0x0e, 0x0fff_ffff),
        (0x0f, 0x1f0),
        // In service, level-triggered, requested.
        (0x11, 1 << 4),
        (0x1a, 1 << 7),
        (0x22, 1 << 7),
        (0x27, 1 << 30),
        (0x30, 0x0004_40fd),
        (0x31, 0x0500_0000),
        // A timer that is stopped: the count of one that runs changes.
        (0x32, 0x1_00ec),
        (0x34, 0x1_0400),
        (0x37, 0xfe),
        (0x3e, 0xb),
        (0x35, 0x8700),
    ];
    apic.iter().for_each(|(n, value)| s.apic.0[*n] = *value);
    let image = &mut s.xsave.0;
    image[..8].copy_from_slice(&[0x7f, 2, 0, 0x18, 0b0101_0011, 0, 0, 0]);
    for n in 0..8 {
        image[32 + 16 * n..40 + 16 * n].copy_from_slice(&(number() | 1 << 63).to_le_bytes());
        image[40 + 16 * n..42 + 16 * n].copy_from_slice(&0x3fff_u16.to_le_bytes());
    }
    image[24..28].copy_from_slice(&0x3f80u32.to_le_bytes());
    for n in 0..32 {
        image[160 + 8 * n..168 + 8 * n].copy_from_slice(&number().to_le_bytes());
    }
    s.normalise();
    s
}

/// Whether the host's KVM shifts the guest's TSC. A software implementation may let RDTSC through as it is.
fn shifts_tsc(engine: &mut KvmEngine, power_up: &CpuState) -> bool {
    const AHEAD: u64 = 1 << 44;
    let mut state = power_up.clone();
    state.msrs.tsc_offset = AHEAD;
    engine.set_state(&state).unwrap();
    let shifts = engine.state().unwrap().msrs.tsc_offset.abs_diff(AHEAD) < 1 << 40;
    if !shifts {
        eprintln!("not compared: this KVM does not shift the guest's TSC");
    }
    shifts
}

#[test]
fn a_state_goes_through_kvm_unchanged() {
    goes_through(IrqChip::Off);
}

#[test]
fn a_state_goes_through_kvm_with_its_own_interrupt_controllers() {
    goes_through(IrqChip::On);
    goes_through(IrqChip::Split);
}

fn goes_through(chip: IrqChip) {
    let Some((_board, mut engine)) = kvm_with("max", chip) else { return };
    engine.reset();
    let mut power_up = engine.state().unwrap();
    let shifts = shifts_tsc(&mut engine, &power_up);
    for mode in ["real", "protected", "long"] {
        let mut wanted = state(&power_up, mode);
        if engine.conversion.layout().components >> 2 & 1 != 0 {
            (0..256).for_each(|n| wanted.xsave.0[AVX + n] = n as u8);
        }
        engine.set_state(&wanted).unwrap();
        let got = engine.state().unwrap();
        if !shifts {
            wanted.msrs.tsc_offset = got.msrs.tsc_offset;
        }
        assert_eq!(got, wanted, "{mode} mode, KVM | wanted:\n{}", got.differences(&wanted));
    }
    engine.set_state(&power_up).unwrap();
    let again = engine.state().unwrap();
    if !shifts {
        power_up.msrs.tsc_offset = again.msrs.tsc_offset;
    }
    assert_eq!(again, power_up, "{}", again.differences(&power_up));
}

#[test]
fn a_state_goes_from_the_translator_through_kvm_and_back() {
    let Some((_kvm_board, mut kvm)) = kvm("max") else { return };
    let (_tcg_board, mut tcg) = tcg("max");
    kvm.reset();
    let power_up = kvm.state().unwrap();
    let shifts = shifts_tsc(&mut kvm, &power_up);
    for mode in ["real", "protected", "long"] {
        tcg.set_state(&state(&power_up, mode)).unwrap();
        let from = tcg.state().unwrap();
        kvm.set_state(&from).unwrap();
        let mut through = kvm.state().unwrap();
        if !shifts {
            through.msrs.tsc_offset = from.msrs.tsc_offset;
        }
        assert_eq!(through, from, "{mode} mode, KVM | translator:\n{}", through.differences(&from));
        tcg.reset();
        tcg.set_state(&through).unwrap();
        let back = tcg.state().unwrap();
        assert_eq!(back, from, "{mode} mode, back | from:\n{}", back.differences(&from));
    }
}

#[test]
fn events_in_flight_are_kept() {
    let Some((_board, mut engine)) = kvm("max") else { return };
    engine.reset();
    let power_up = engine.state().unwrap();
    for in_flight in [
        InFlight::Interrupt(0x31),
        InFlight::Exception { vector: 13, error: Some(0x18) },
        InFlight::Exception { vector: 6, error: None },
    ] {
        let mut wanted = state(&power_up, "protected");
        wanted.events.in_flight = Some(in_flight);
        engine.set_state(&wanted).unwrap();
        assert_eq!(engine.state().unwrap().events.in_flight, Some(in_flight));
    }
    for chip in [IrqChip::Off, IrqChip::On, IrqChip::Split] {
        let Some((_board, mut engine)) = kvm_with("max", chip) else { return };
        let mut wanted = state(&power_up, "protected");
        (wanted.events.nmi_blocked, wanted.events.halted) = (true, true);
        engine.set_state(&wanted).unwrap();
        assert_eq!(engine.state().unwrap().events, wanted.events);
    }
}

/// Runs code in real mode on an engine until it halts with interrupts off; returns the state and the first 64 KiB.
fn execute(board: &PcMachine, engine: &mut dyn Engine, code: &[u8]) -> (CpuState, Vec<u8>) {
    engine.reset();
    let mut state = engine.state().unwrap();
    state.segments[seg::CS] = segment(0, 0xffff, 0x9b, 0);
    state.rip = CODE;
    state.gpr = [0; 16];
    state.gpr[reg::RSP] = 0x8000;
    // TSC and what it is compared with differ from run to run.
    board.address_space.write_bytes(CODE, code);
    engine.set_state(&state).unwrap();
    let control = engine.control();
    let watchdog = std::thread::spawn({
        let control = control.clone();
        move || {
            std::thread::park_timeout(std::time::Duration::from_secs(20));
            control.stop();
        }
    });
    let mut memory = vec![0; 0x1_0000];
    // A processor that halts with interrupts off waits for ever: the program tells when it does so.
    let finished = {
        let space = board.address_space.clone();
        let done = control.clone();
        std::thread::spawn(move || {
            for _ in 0..20_000 {
                if space.read(0xff00, 4) == 0x600d_600d {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
            done.stop();
        })
    };
    let stop = drive(engine);
    finished.join().unwrap();
    watchdog.thread().unpark();
    watchdog.join().unwrap();
    assert_eq!(stop, Stop::Requested);
    board.address_space.read_bytes(0, &mut memory);
    assert_eq!(memory[0xff00..0xff04], [0x0d, 0x60, 0x0d, 0x60], "it did not come to its end");
    (engine.state().unwrap(), memory)
}

/// What ends every program: `mov dword [0xff00], 0x600d600d; cli; hlt; jmp $-1`.
const END: &[u8] = &[0x66, 0xc7, 0x06, 0x00, 0xff, 0x0d, 0x60, 0x0d, 0x60, 0xfa, 0xf4, 0xeb, 0xfd];

#[test]
fn programs_end_in_the_same_state() {
    let programs: [(&str, &[u8]); 6] = [
        // mov ax,0x1234; mov bx,0xff00; add ax,bx; push ax; pop dx; pushf; pop cx; mov [0x2000],ax
        (
            "arithmetic",
            &[0xb8, 0x34, 0x12, 0xbb, 0x00, 0xff, 0x01, 0xd8, 0x50, 0x5a, 0x9c, 0x59, 0xa3, 0x00, 0x20],
        ),
        // mov cx,100; mov di,0x3000; mov al,7; rep stosb; mov si,0x3000; mov di,0x3100; mov cx,50; rep movsw
        (
            "strings",
            &[
                0xb9, 100, 0, 0xbf, 0x00, 0x30, 0xb0, 7, 0xf3, 0xaa, 0xbe, 0x00, 0x30, 0xbf, 0x00, 0x31,
                0xb9, 50, 0, 0xf3, 0xa5,
            ],
        ),
        // mov dx,0x71; mov al,0xa; out 0x70,al; in al,dx; then the same by INSB to 0x3000, 3 times: mov di,0x3000;
        // mov cx,3; rep insb
        (
            "ports",
            &[0xba, 0x71, 0x00, 0xb0, 0x0f, 0xe6, 0x70, 0xec, 0xbf, 0x00, 0x30, 0xb9, 3, 0, 0xf3, 0x6c],
        ),
        // Vector 0 goes to 0x4000, where an IRET skips DIV: word [0]=0x4000, [2]=0; byte code at 0x4000:
        // mov word [0], 0x4000; mov word [2], 0; mov dword [0x4000], 0x5d505b83 would be long: the handler is
        // pop bx; add bx,2; push bx; iret = 5b 83 c3 02 53 cf
        (
            "an exception",
            &[
                0xc7, 0x06, 0, 0, 0x00, 0x40, 0xc7, 0x06, 2, 0, 0, 0, 0xc7, 0x06, 0x00, 0x40, 0x5b, 0x83,
                0xc7, 0x06, 0x02, 0x40, 0xc3, 0x02, 0xc7, 0x06, 0x04, 0x40, 0x53, 0xcf, 0x31, 0xc9, 0xf7,
                0xf1,
            ],
        ),
        // mov ax,0x5a5a; mov ds at 0xffff: A20 on, word at 0xffff:0x20 = 0x100010
        (
            "memory above 1 MiB",
            &[
                0xb8, 0xff, 0xff, 0x8e, 0xc0, 0xb8, 0x5a, 0x5a, 0x26, 0xa3, 0x20, 0x00, 0x26, 0x8b, 0x1e,
                0x20, 0x00,
            ],
        ),
        // The same with the gate closed (out 0x92, 0), opened again afterwards (out 0x92, 2), and what is at 0x10 now.
        (
            "the A20 gate",
            &[
                0xb8, 0xff, 0xff, 0x8e, 0xc0, 0xb0, 0x00, 0xe6, 0x92, 0xb8, 0xa5, 0x5a, 0x26, 0xa3, 0x20,
                0x00, 0xb0, 0x02, 0xe6, 0x92, 0x8b, 0x1e, 0x10, 0x00,
            ],
        ),
    ];
    for (name, program) in programs {
        // One machine each, so that nothing is left over.
        let Some((kvm_board, mut kvm)) = kvm("max") else { return };
        let (tcg_board, mut tcg) = tcg("max");
        let code = [program, END].concat();
        let (by_kvm, kvm_memory) = execute(&kvm_board, &mut kvm, &code);
        let (mut by_tcg, tcg_memory) = execute(&tcg_board, &mut tcg, &code);
        // The model's signature and what the host's KVM does not let a guest set are the host's.
        by_tcg.msrs = by_kvm.msrs.clone();
        assert_eq!(by_kvm, by_tcg, "{name}, KVM | translator:\n{}", by_kvm.differences(&by_tcg));
        let different = kvm_memory.iter().zip(&tcg_memory).position(|(a, b)| a != b);
        assert_eq!(different, None, "{name}: the first byte of memory that differs");
    }
}

#[test]
fn a_triple_fault_stops_with_the_state() {
    let Some((board, mut engine)) = kvm("max") else { return };
    engine.reset();
    // KVM's emulator does not look at the table's limit in real mode.
    let mut state = state(&engine.state().unwrap(), "protected");
    // No interrupt table: UD2's exception, the double fault and the third fail.
    state.idtr = TableRegister { base: 0, limit: 0 };
    board.address_space.write_bytes(CODE, &[0x0f, 0x0b]);
    engine.set_state(&state).unwrap();
    let Stop::TripleFault(text) = drive(&mut engine) else { panic!("no triple fault") };
    assert!(text.contains("EIP=00001000"), "{text}");
    // It stays so until it is reset.
    assert!(matches!(engine.run(), Stop::TripleFault(_)));
    engine.reset();
    assert!(!engine.state().unwrap().events.shutdown);
}

#[test]
fn a_kick_ends_an_endless_loop_at_once() {
    // jmp $
    a_kick_ends(IrqChip::Off, &[0xeb, 0xfe], CODE);
}

#[test]
fn a_kick_ends_a_halt_at_once() {
    // hlt; jmp to it. KVM itself waits for the end of the halt if it has the interrupt controllers.
    a_kick_ends(IrqChip::Off, &[0xf4, 0xeb, 0xfd], CODE + 1);
    a_kick_ends(IrqChip::On, &[0xf4, 0xeb, 0xfd], CODE + 1);
    a_kick_ends(IrqChip::Split, &[0xf4, 0xeb, 0xfd], CODE + 1);
}

fn a_kick_ends(chip: IrqChip, code: &[u8], at: u64) {
    let Some((board, mut engine)) = kvm_with("max", chip) else { return };
    engine.reset();
    let mut state = engine.state().unwrap();
    state.segments[seg::CS] = segment(0, 0xffff, 0x9b, 0);
    state.rip = CODE;
    board.address_space.write_bytes(CODE, code);
    engine.set_state(&state).unwrap();
    let control = engine.control();
    let stopped = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(50));
        control.stop();
        std::time::Instant::now()
    });
    assert_eq!(drive(&mut engine), Stop::Requested);
    let late = stopped.join().unwrap().elapsed();
    assert!(late < std::time::Duration::from_millis(500), "{late:?}");
    assert_eq!(engine.state().unwrap().rip, at);
}

#[test]
fn models_are_what_the_host_supports() {
    let Some((_, engine)) = kvm("host") else { return };
    assert_ne!(engine.signature, 0);
    let Some((_, engine)) = kvm("max,-sse2") else { return };
    assert!(!engine.cpuid.has(tessera_x86::cpuid::Feature::SSE2));
    let (board, config) = board("z80");
    assert!(
        matches!(KvmEngine::new(&board, &config, IrqChip::Off), Err(Unavailable::Request(why)) if why.contains("z80"))
    );
}
