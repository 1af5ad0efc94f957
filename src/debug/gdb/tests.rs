//! The server with a machine that does nothing by itself.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use tessera_hw::boards::pc::{PcConfig, PcMachine};
use tessera_x86::cpu_state::CpuState;
use tessera_x86::state::{Cr0, RFlags};

use super::*;
use crate::accel::debug::Step;
use crate::accel::{Control, Engine, Stop};
use crate::event_loop::Waker;
use crate::vcpu::Vcpu;

/// A state in real mode.
pub fn state() -> CpuState {
    let mut state = CpuState {
        gpr: [0; 16],
        rip: 0x7c00,
        rflags: RFlags::ONE.bits(),
        segments: Default::default(),
        cpl: 0,
        gdtr: Default::default(),
        idtr: Default::default(),
        cr0: Cr0::ET.bits(),
        cr2: 0,
        cr3: 0,
        cr4: 0,
        cr8: 0,
        xcr0: 1,
        efer: 0,
        pdpte: [0; 4],
        dr: [0; 4],
        dr6: 0xffff_0ff0,
        dr7: 0x400,
        msrs: Default::default(),
        xsave: Default::default(),
        apic_base: 0,
        tsc_deadline: 0,
        apic: Default::default(),
        events: Default::default(),
    };
    state.normalise();
    state
}

/// Keeps a state.
struct Keeper {
    state: CpuState,
    request: DebugRequest,
    control: Arc<Control>,
}

impl Engine for Keeper {
    fn run(&mut self) -> Stop {
        Stop::Requested
    }
    fn reset(&mut self) {}
    fn state(&mut self) -> Result<CpuState, String> {
        Ok(self.state.clone())
    }
    fn set_state(&mut self, state: &CpuState) -> Result<(), String> {
        self.state = state.clone();
        Ok(())
    }
    fn set_debug(&mut self, request: &DebugRequest) -> Result<(), String> {
        if request.breakpoints.len() > 4 {
            return Err("no more than four".into());
        }
        self.request = request.clone();
        Ok(())
    }
    fn control(&self) -> Arc<Control> {
        self.control.clone()
    }
    fn awake(&self) -> bool {
        false
    }
    fn dump(&self) -> String {
        "all registers".into()
    }
    fn statistics(&self) -> String {
        String::new()
    }
}

struct Rig {
    server: GdbServer,
    peer: Option<UnixStream>,
    board: PcMachine,
    _vcpu: Vcpu,
    path: std::path::PathBuf,
}

impl Rig {
    fn new(name: &str, running: bool) -> Rig {
        let path = std::env::temp_dir().join(format!("tessera-gdb-{name}-{}", std::process::id()));
        let board = PcMachine::build(PcConfig::new(1 << 20)).unwrap();
        let control = Control::new(Box::new(|| ()));
        let keeper = Keeper { state: state(), request: DebugRequest::default(), control };
        let vcpu = Vcpu::spawn(0, Box::new(keeper), Waker::new().unwrap()).unwrap();
        let listening = GdbSpec::Unix(path.clone()).open().unwrap();
        let server = GdbServer::new(listening, &board, vcpu.handle().unwrap(), running);
        let mut rig = Rig { server, peer: None, board, _vcpu: vcpu, path };
        rig.call();
        rig
    }

    fn call(&mut self) {
        let peer = UnixStream::connect(&self.path).unwrap();
        peer.set_nonblocking(true).unwrap();
        self.peer = Some(peer);
    }

    /// Sends bytes; what the server asks, the machine standing by.
    fn send(&mut self, bytes: &[u8]) -> Vec<Ask> {
        Write::write_all(self.peer.as_mut().unwrap(), bytes).unwrap();
        self.serve()
    }

    fn serve(&mut self) -> Vec<Ask> {
        let mut asks = Vec::new();
        while let Some(ask) = self.server.service() {
            asks.push(ask);
            match ask {
                Ask::Stop => self.server.stopped(&StopReason::Interrupted),
                Ask::Resume | Ask::Release => self.server.resumed(),
                Ask::Reset => self.server.changed(),
                Ask::Kill => break,
            }
        }
        asks
    }

    fn received(&mut self) -> String {
        let mut bytes = vec![0; 1 << 20];
        let count = self.peer.as_mut().unwrap().read(&mut bytes).unwrap_or(0);
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    }

    /// Sends a packet and returns the answer's body.
    fn ask(&mut self, body: &str) -> String {
        assert_eq!(self.send(&packet(body.as_bytes())), []);
        let answer = self.received();
        let body = answer.strip_prefix("+$").and_then(|rest| rest.split('#').next());
        body.unwrap_or_else(|| panic!("{body:?}: {answer:?}")).to_owned()
    }
}

#[test]
fn garbage_and_hang_ups_stop_nothing() {
    let mut rig = Rig::new("garbage", true);
    assert_eq!(rig.send(b"GET / HTTP/1.1\r\n\r\n\x03$g#00$m12"), []);
    rig.peer = None;
    assert_eq!(rig.serve(), []);
    rig.call();
    // A caller who has said nothing does not keep others out.
    rig.serve();
    let silent = rig.peer.take();
    rig.call();
    assert_eq!(rig.send(&packet(b"?")), [Ask::Stop]);
    assert!(rig.received().starts_with("+$T05") || rig.server.caller.is_some());
    // Half a packet, and the caller goes: the guest goes on.
    assert_eq!(rig.send(b"$Z0,1000,1#"), []);
    rig.peer = None;
    assert_eq!(rig.serve(), [Ask::Release]);
    drop(silent);
}

#[test]
fn packets_that_mean_nothing_leave_the_session_as_it_is() {
    let mut rig = Rig::new("nonsense", false);
    for body in [
        "",
        "vCont",
        "vCont;",
        "vCont;x:1",
        "vCont;t",
        "vCont;s",
        "m",
        "m0,ffffffffffffffff",
        "mffffffffffffffff,10",
        "M0,4:zz",
        "X0",
        "Z9,0,0",
        "Z0",
        "Z2,0,0",
        "z0,1,1",
        "P",
        "Pffff=0",
        "p",
        "pffffff",
        "G00",
        "H",
        "Hg",
        "Hzz",
        "Hg-1",
        "T",
        "qXfer:features:read:target.xml:fffff,fff",
        "qXfer:features:read::,",
        "qRcmd,",
        "qRcmd,zz",
        "c1000",
        "s1000",
        "C",
        "vRun;",
        "D;zz",
        "qThreadExtraInfo",
        "QStartNoAckMode1",
        "\u{0}\u{1}}",
    ] {
        if let "vCont;s" | "vCont" | "D;zz" | "vCont;" = body {
            // Whatever it takes them for, the next packet is answered.
            let asks = rig.send(&packet(body.as_bytes()));
            if asks.contains(&Ask::Resume) {
                rig.server.stopped(&StopReason::Interrupted);
            }
            if asks.contains(&Ask::Release) {
                rig.server.stopped(&StopReason::Interrupted);
                rig.call();
            }
            rig.received();
        } else {
            rig.ask(body);
        }
        assert_eq!(rig.ask("qC").is_empty(), rig.ask("qC").is_empty());
        assert_eq!(&rig.ask("g")[..16], "0000000000000000", "after {body:?}");
    }
}

#[test]
fn a_caller_who_does_not_read_is_hung_up_on() {
    let mut rig = Rig::new("deaf", false);
    assert_eq!(rig.ask("m0,4000").len(), 0x8000);
    rig.send(&b"-".repeat(4000));
    assert!(rig.server.caller.as_ref().unwrap().unsent.borrow().len() <= 2 * MAX_UNSENT);
    let mut asks = Vec::new();
    for _ in 0..20 {
        // It may have hung up already.
        let _ = Write::write(rig.peer.as_mut().unwrap(), &packet(b"m0,4000").repeat(40));
        asks.extend(rig.serve());
    }
    assert!(rig.server.caller.is_none());
    assert_eq!(asks, [Ask::Release]);
}

#[test]
fn registers_memory_and_breakpoints() {
    let mut rig = Rig::new("target", false);
    assert_eq!(rig.ask("P0=8877665544332211"), "OK");
    assert_eq!(rig.ask("p0"), "8877665544332211");
    assert!(rig.ask("g").starts_with("8877665544332211"));
    assert_eq!(rig.ask("M1000,4:01020304"), "OK");
    assert_eq!(rig.ask("m1001,2"), "0203");
    assert_eq!(rig.board.address_space.read(0x1000, 4), 0x0403_0201);
    assert!(rig.ask("mfee00000,4").starts_with('E'), "registers of a device are not read");
    assert!(rig.ask("M100000,1:00").starts_with('E'), "beyond RAM");
    assert_eq!(rig.ask("Qqemu.PhyMemMode:1"), "OK");
    assert_eq!(rig.ask("qqemu.PhyMemMode"), "1");
    assert_eq!(rig.ask("m1000,1"), "01");
    for address in 1..=4 {
        assert_eq!(rig.ask(&format!("Z0,{address}000,1")), "OK");
    }
    assert!(rig.ask("Z0,5000,1").starts_with('E'), "the engine refuses it");
    assert_eq!(rig.ask("z0,4000,1"), "OK");
    assert_eq!(rig.ask("Z2,2000,8"), "OK");
    assert_eq!(rig.server.request().breakpoints, [0x1000, 0x2000, 0x3000]);
    assert_eq!(rig.server.request().watchpoints[0].range, 0x2000..=0x2007);
    let xml = rig.ask("qXfer:features:read:target.xml:0,7000");
    assert!(xml.starts_with('m') && xml.contains("rip") && xml.contains("ymm15h"), "{xml}");
}

#[test]
fn steps_stops_and_leaving() {
    let mut rig = Rig::new("steps", false);
    assert_eq!(rig.send(&packet(b"vCont;s:1;c")), [Ask::Resume]);
    assert_eq!(rig.server.request().step, Some(Step::One));
    rig.server.stopped(&StopReason::Debug(DebugStop::Stepped));
    assert!(rig.received().contains("$T05thread:"), "the step is reported");
    assert_eq!(rig.send(&packet(b"vCont;r7c00,7c10:1;c")), [Ask::Resume]);
    assert_eq!(rig.server.request().step, Some(Step::Within(0x7c00..0x7c10)));
    assert_eq!(rig.send(b"\x03"), [Ask::Stop]);
    assert!(rig.received().contains("T02"));
    rig.ask("Z1,7c00,1");
    assert_eq!(rig.send(&packet(b"c")), [Ask::Resume]);
    assert_eq!(rig.server.request().step, None);
    rig.server.stopped(&StopReason::Debug(DebugStop::Breakpoint));
    assert!(rig.received().contains("hwbreak"));
    let watch = DebugStop::Watch { address: 0x2004, kind: WatchKind::Write };
    assert_eq!(rig.send(&packet(b"vCont;c")), [Ask::Resume]);
    rig.server.stopped(&StopReason::Debug(watch));
    assert!(rig.received().contains("watch:2004;"));
    // What does not arrive is sent again.
    assert_eq!(rig.send(b"-"), []);
    assert!(rig.received().contains("watch:2004;"));
    assert_eq!(rig.send(&packet(b"D")), [Ask::Release]);
    assert!(rig.received().contains("$OK#9a"));
    assert_eq!(rig.server.request(), DebugRequest::default());
    // The next one.
    rig.call();
    assert_eq!(rig.send(&packet(b"qSupported:swbreak+")), [Ask::Stop]);
    assert!(rig.received().contains("PacketSize"));
    assert_eq!(rig.send(&packet(b"vKill;1")), [Ask::Kill]);
    assert!(rig.received().contains("$OK#9a"));
    assert_eq!(rig.send(&packet(b"k")), [Ask::Kill]);
}

#[test]
fn steps_take_interrupts_and_timers_when_told_to() {
    let mut rig = Rig::new("stepping", false);
    assert_eq!(rig.ask("qqemu.Supported"), "sstepbits;sstep;PhyMemMode");
    assert_eq!(rig.ask("qqemu.sstepbits"), "ENABLE=1,NOIRQ=2,NOTIMER=4");
    assert_eq!(rig.ask("qqemu.sstep"), "0x7");
    assert!(!rig.server.request().interrupts && !rig.server.timers_in_steps());
    assert_eq!(rig.ask("Qqemu.sstep=0x5"), "OK");
    assert!(rig.server.request().interrupts && !rig.server.timers_in_steps());
    assert_eq!(rig.ask("Qqemu.sstep=1"), "OK");
    assert!(rig.server.request().interrupts && rig.server.timers_in_steps());
    assert_eq!(rig.ask("qqemu.sstep"), "0x1");
    for wrong in ["", "0x", "0x6", "0x9", "seven", "100"] {
        assert_eq!(rig.ask(&format!("Qqemu.sstep={wrong}")), "E22", "{wrong}");
    }
    assert_eq!(rig.ask("qqemu.sstep"), "0x1");
    // The next debugger starts anew.
    assert_eq!(rig.send(&packet(b"D")), [Ask::Release]);
    assert!(!rig.server.request().interrupts);
}

#[test]
fn a_second_debugger_is_told_and_the_first_stays() {
    let mut rig = Rig::new("second", false);
    assert_eq!(rig.ask("qqemu.sstep"), "0x7");
    let first = rig.peer.take().unwrap();
    rig.call();
    assert_eq!(rig.send(b""), [], "it has said nothing yet");
    assert_eq!(rig.send(&packet(b"qSupported")), []);
    assert!(rig.received().contains("$E.another debugger is connected"));
    assert_eq!(rig.send(&packet(b"vKill;1")), [], "and does nothing");
    assert!(rig.received().contains("$E.another debugger is connected"));
    // It may hang up when it likes, and who does not read is hung up on.
    for _ in 0..40 {
        // It may have happened.
        let _ = Write::write(rig.peer.as_mut().unwrap(), &packet(b"g").repeat(1000));
        assert_eq!(rig.serve(), []);
    }
    assert!(rig.server.refused.is_empty());
    // However many there are.
    let crowd: Vec<_> = (0..3 * MAX_REFUSED).map(|_| UnixStream::connect(&rig.path).unwrap()).collect();
    assert_eq!(rig.serve(), []);
    assert!(rig.server.refused.len() <= MAX_REFUSED);
    drop(crowd);
    assert_eq!(rig.serve(), []);
    assert!(rig.server.refused.is_empty());
    // One who waits silently is next when the first has gone.
    rig.call();
    assert_eq!(rig.serve(), []);
    drop(first);
    assert_eq!(rig.serve(), [Ask::Release]);
    assert_eq!(rig.send(&packet(b"?")), [Ask::Stop]);
    assert!(rig.received().contains("$T"));
}

#[test]
fn monitor_commands() {
    let mut rig = Rig::new("monitor", false);
    let mut monitor = |command: &str| {
        let hex: String = command.bytes().map(|byte| format!("{byte:02x}")).collect();
        let asks = rig.send(&packet(format!("qRcmd,{hex}").as_bytes()));
        let answer = rig.received();
        let texts = answer.split('$').filter_map(|text| text.strip_prefix('O')?.split('#').next());
        let bytes: Vec<u8> = texts
            .filter(|text| *text != "K")
            .flat_map(|text| text.as_bytes().chunks(2))
            .filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
            .collect();
        (String::from_utf8(bytes).unwrap(), asks)
    };
    assert!(monitor("help").0.contains("translate ADDRESS"));
    assert_eq!(monitor("registers").0, "all registers");
    assert_eq!(monitor("info registers").0, "all registers");
    assert!(monitor("gva2gpa 0x1234").0.contains("physical 0x1234"));
    assert!(monitor("translate 0x1234").0.contains("physical 0x1234"));
    assert!(monitor("disassemble 0x500 2").0.contains("0x0000000000000500"));
    assert!(monitor("tb 0").0.contains("-accel tcg"));
    assert!(monitor("dance").0.contains("no such command"));
    assert_eq!(monitor("reset").1, [Ask::Reset]);
    assert_eq!(monitor("quit").1, [Ask::Kill]);
}
