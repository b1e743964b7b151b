//! Texts that objects have in common.

use std::cell::RefCell;
use std::sync::Arc;

/// The namespace, the names of the ports, and what stands between them.
const KEPT: usize = 4;

thread_local! {
    static RECENT: RefCell<[Arc<str>; KEPT]> = RefCell::default();
}

/// In the memory that it has already if it is one of the last few texts that this thread has read: objects that follow each other
/// mostly agree in their namespace and in the names of their ports, of which there would be a hundred thousand otherwise.
pub fn shared(text: &str) -> Arc<str> {
    RECENT.with_borrow_mut(|recent| {
        let found = recent.iter().position(|known| **known == *text);
        recent[..=found.unwrap_or(KEPT - 1)].rotate_right(1);
        if found.is_none() {
            recent[0] = text.into();
        }
        recent[0].clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_come_again_soon_are_one() {
        let texts = ["shop", "http", "shop", "https", "http", "a", "b", "c", "shop", ""];
        let all = texts.map(shared);
        assert_eq!(all.each_ref().map(|text| &**text), texts);
        for (first, again, same) in [(0, 2, true), (1, 4, true), (0, 8, false)] {
            assert_eq!(Arc::ptr_eq(&all[first], &all[again]), same, "{} at {again}", texts[again]);
        }
    }
}
