//! x
use crate::kit::*;
use iced_x86::code_asm::*;
use tessera_asm::R;
pub fn emit(k: &mut Kit) -> R {
    k.check("x", "3A, 1", |k| {
        k.raises("ud", UD, |k| k.ud2())?;
        k.user("gp", gp(0), |k| k.hlt())
    })
}
