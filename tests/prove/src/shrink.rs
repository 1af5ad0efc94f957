//! From a case that differs to the smallest one that still does.

use anyhow::Result;
use iced_x86::Mnemonic;

use crate::frame::{Frame, at};
use crate::generate::Case;
use crate::layout::{IMAGE, PAGE, WINDOW};
use crate::rig::{Rig, Verdict};

/// A shrunk case.
pub struct Small {
    /// It.
    pub case: Case,
    /// Contents of the window before it.
    pub image: Vec<u8>,
}

/// Leaves out steps and simplifies the state as long as both sides differ on the vCPU number `cpu`.
pub fn shrink(rig: &mut Rig, case: &Case, image: &[u8], cpu: usize) -> Result<Small> {
    let mut small = Small { case: case.clone(), image: image.to_vec() };
    loop {
        let before = small.case.sequence.steps.len();
        let mut n = small.case.sequence.steps.len();
        while n > 0 {
            n -= 1;
            let mut next = small.case.clone();
            if n >= next.sequence.steps.len() {
                continue;
            }
            next.sequence.drop_step(n);
            next.sequence.define_flags();
            if next.sequence.steps.is_empty() {
                continue;
            }
            if rig.run_one(&next, &small.image, cpu)? == Verdict::Differ {
                small.case = next;
            }
        }
        if small.case.sequence.steps.len() >= before {
            break;
        }
    }
    let zeros = vec![0; IMAGE];
    if rig.run_one(&small.case, &zeros, cpu)? == Verdict::Differ {
        small.image = zeros;
    } else {
        for at in (0..IMAGE).step_by(PAGE / 16) {
            let mut next = small.image.clone();
            next[at..at + PAGE / 16].fill(0);
            if rig.run_one(&small.case, &next, cpu)? == Verdict::Differ {
                small.image = next;
            }
        }
    }
    // What XSAVE finds in use depends on what was loaded, natively, and on the values in the translator.
    let saves = small.case.sequence.steps.iter().flat_map(|s| &s.insns).any(|i| {
        use Mnemonic::*;
        matches!(i.mnemonic(), Xsave | Xsave64 | Xsaveopt | Xsaveopt64 | Xsavec | Xsavec64)
    });
    let simpler = if saves { Vec::new() } else { changes() };
    for change in simpler {
        let mut next = small.case.clone();
        change(&mut next.frame);
        if next.frame != small.case.frame && rig.run_one(&next, &small.image, cpu)? == Verdict::Differ {
            small.case = next;
        }
    }
    Ok(small)
}

type Change = Box<dyn Fn(&mut Frame)>;

/// Simplifications of the state, the most effective first.
fn changes() -> Vec<Change> {
    let mut all: Vec<Change> = vec![
        Box::new(|f| f.xsave[160..416].fill(0)),
        Box::new(|f| f.xsave[576..].fill(0)),
        Box::new(|f| {
            f.xsave[32..160].fill(0);
            f.set(at::CONTROL, 0x37f);
            f.xsave[2..24].fill(0);
        }),
        Box::new(|f| f.set(at::CONTROL, 0x37f)),
        Box::new(|f| f.set(at::STATUS, 0)),
        Box::new(|f| f.xsave[6..24].fill(0)),
        Box::new(|f| f.set(at::TAGS, 0)),
        Box::new(|f| f.set(at::MXCSR, 0x1f80)),
        Box::new(|f| f.flags = 0x202),
        Box::new(|f| f.fs = WINDOW + 0x1100),
        Box::new(|f| f.gs = WINDOW + 0x1100),
    ];
    for n in 0..16 {
        all.push(Box::new(move |f| f.gpr[n] = 0));
        all.push(Box::new(move |f| f.xsave[at::xmm(n)].fill(0)));
        all.push(Box::new(move |f| f.xsave[at::ymm(n)].fill(0)));
    }
    for n in 0..8 {
        all.push(Box::new(move |f| f.xsave[at::st(n)].fill(0)));
    }
    all
}
