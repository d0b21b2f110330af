//! The edge of every exported function: no panic crosses it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `body`; a panic is logged and becomes `otherwise`.
#[inline]
pub fn guarded<T>(call: &'static str, otherwise: T, body: impl FnOnce() -> T) -> T {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(value) => value,
        Err(panic) => {
            tell(call, &*panic);
            otherwise
        }
    }
}

#[cold]
fn tell(call: &str, panic: &(dyn Any + Send)) {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no text");
    crate::say!("{call}: internal error: {text}");
}

/// Defines exported functions: `export! { fn name(arguments) -> type [otherwise] { body } }`. The body may rely on the header's contract for
/// its pointers, and returns `otherwise` if it panics.
#[macro_export]
macro_rules! export {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident: $kind:ty),* $(,)?) $(-> $ret:ty)? [$otherwise:expr] $body:block)+) => { $(
        $(#[$meta])*
        ///
        /// # Safety
        /// The contract of the header that declares it.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $kind),*) $(-> $ret)? {
            $crate::guard::guarded(stringify!($name), $otherwise, move || $body)
        }
    )+ };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_value() {
        assert_eq!(guarded("test", -5, || -1), -1);
        assert_eq!(guarded("test", -5, || std::panic::panic_any("boom")), -5);
    }
}
