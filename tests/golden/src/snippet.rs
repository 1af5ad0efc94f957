//! Pieces of guest code and the modes that they are translated for.

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use tessera_tcg::backend::HostVec;

/// The processor's state as far as translation depends on it. All segments are flat unless said otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// 64-bit code at privilege level 3.
    User64,
    /// 64-bit code at privilege level 0.
    Kernel64,
    /// 32-bit code of a 64-bit system, at privilege level 3.
    User32,
    /// The same with a DS that has a base and a limit.
    Segmented32,
    /// Real mode.
    Real,
}

impl Mode {
    /// 16, 32 or 64.
    pub fn bits(self) -> u32 {
        match self {
            Mode::User64 | Mode::Kernel64 => 64,
            Mode::User32 | Mode::Segmented32 => 32,
            Mode::Real => 16,
        }
    }

    /// As headings have it.
    pub fn name(self) -> &'static str {
        match self {
            Mode::User64 => "user, 64 bits",
            Mode::Kernel64 => "kernel, 64 bits",
            Mode::User32 => "user, 32 bits",
            Mode::Segmented32 => "user, 32 bits, DS not flat",
            Mode::Real => "real mode",
        }
    }
}

/// A piece of guest code.
pub struct Snippet {
    /// Its name, unique in its theme.
    pub name: &'static str,
    /// What it is translated for.
    pub mode: Mode,
    /// Assembles it.
    pub emit: fn(&mut CodeAssembler) -> Result<(), IcedError>,
}

/// Snippets about the same matter: a file.
pub struct Theme {
    /// Name of the file.
    pub name: &'static str,
    /// The snippets.
    pub snippets: &'static [Snippet],
    /// Whether a host's optional instructions suffice: without them, helpers are called and the text is another one.
    pub host: fn(&HostVec) -> bool,
}

/// A list of [`Snippet`]s: `assembler; name Mode { [prefix] instruction(operands); … } …`.
macro_rules! snippets {
    ($a:ident; $( $name:ident $mode:ident { $( $([$prefix:ident])? $insn:ident ( $($arg:expr),* $(,)? ) );+ $(;)? } )*) => {
        &[ $( $crate::snippet::Snippet {
            name: stringify!($name),
            mode: $crate::snippet::Mode::$mode,
            emit: |$a| { $( $( let _ = $a.$prefix(); )? snippets!(@one $a $insn $($arg),*); )+ Ok(()) },
        } ),* ]
    };
    (@one $a:ident $insn:ident) => { $a.$insn()? };
    (@one $a:ident $insn:ident $x:expr) => { { let x = $x; $a.$insn(x)? } };
    (@one $a:ident $insn:ident $x:expr, $y:expr) => { { let (x, y) = ($x, $y); $a.$insn(x, y)? } };
    (@one $a:ident $insn:ident $x:expr, $y:expr, $z:expr) => {
        { let (x, y, z) = ($x, $y, $z); $a.$insn(x, y, z)? }
    };
    (@one $a:ident $insn:ident $x:expr, $y:expr, $z:expr, $w:expr) => {
        { let (x, y, z, w) = ($x, $y, $z, $w); $a.$insn(x, y, z, w)? }
    };
}
pub(crate) use snippets;
