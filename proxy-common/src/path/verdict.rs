//! What becomes of a packet, also as a number.

use crate::abi::Reason;

/// What becomes of a packet. Numbers of a hook appear only in its shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The stack goes on with it, rewritten or not.
    Pass,
    /// Dropped. A hook has counted it when it returns it.
    Drop(Reason),
    /// It has been turned into an answer: send it out of the device it came in by. Likewise.
    Reject(Reason),
    /// It leaves by the device that [`super::Packet::send`] was told, past the stack. Already counted.
    Shortcut,
}

impl Verdict {
    /// One number: 0 for pass; else the reason's, plus 0x100 for a drop and 0x200 for a rejection; 0x400 for a shortcut.
    #[must_use]
    #[inline(always)]
    pub const fn code(self) -> u32 {
        match self {
            Self::Pass => 0,
            Self::Drop(reason) => DROP | reason as u32,
            Self::Reject(reason) => REJECT | reason as u32,
            Self::Shortcut => SHORTCUT,
        }
    }

    /// The verdict with this [`Verdict::code`].
    #[must_use]
    #[inline(always)]
    pub fn from_code(code: u32) -> Self {
        if code == Self::Pass.code() {
            return Self::Pass;
        }
        if code == SHORTCUT {
            return Self::Shortcut;
        }
        let reason = Reason::ALL.get((code & 0xff) as usize).copied().unwrap_or(Reason::Rewrite);
        if code & REJECT == 0 { Self::Drop(reason) } else { Self::Reject(reason) }
    }
}

/// A [`Verdict`] that crosses a call between subprograms. As an enum it would be returned through memory, and LLVM stores
/// the undefined reason of `Pass` as well, which the verifier refuses.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Returned(u32);

impl Returned {
    /// No verdict: it is for the caller to find one.
    pub(super) const NONE: Self = Self(u32::MAX);

    /// What crossed the call as this number.
    #[inline(always)]
    pub(super) const fn from_code(code: u32) -> Self {
        Self(code)
    }

    /// The number that crosses it.
    #[inline(always)]
    pub(super) const fn code(self) -> u32 {
        self.0
    }

    /// The verdict, if there is one.
    #[inline(always)]
    pub(super) fn verdict(self) -> Option<Verdict> {
        if self.0 == Self::NONE.0 { None } else { Some(Verdict::from_code(self.0)) }
    }
}

const DROP: u32 = 0x100;
const REJECT: u32 = 0x200;
const SHORTCUT: u32 = 0x400;

impl From<Verdict> for Returned {
    #[inline(always)]
    fn from(verdict: Verdict) -> Self {
        Self(verdict.code())
    }
}

impl From<Returned> for Verdict {
    #[inline(always)]
    fn from(returned: Returned) -> Self {
        Self::from_code(returned.0)
    }
}
