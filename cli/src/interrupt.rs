//! A command that is interrupted (Ctrl-C, SIGTERM, a closed terminal) takes its temporary files with it.
//!
//! One thread waits for signals from the guard's making to the program's end, since a handler that is taken away leaves the
//! signal ignored. One guard per command. **Invariant**: once the thread has begun to clean up, the command
//! does not get past [`Interrupt::release`], so it neither writes a second message nor ends with another status.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::failure::Failure;

/// What an interrupted command still does: removes what it made, and says in one line what is left.
type LastAct = Box<dyn FnOnce() -> String + Send>;

/// Guards a part of a command that makes temporary files.
#[must_use]
pub struct Interrupt {
    last_act: Arc<Mutex<Option<LastAct>>>,
}

impl Interrupt {
    /// From now on a signal runs `last_act`, prints the line that it returns, and ends the program with 128 + signal.
    pub fn guard(last_act: impl FnOnce() -> String + Send + 'static) -> Result<Interrupt, Failure> {
        let mut signals =
            Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(Failure::while_doing("listening to signals"))?;
        let last_act: Arc<Mutex<Option<LastAct>>> = Arc::new(Mutex::new(Some(Box::new(last_act))));
        let shared = Arc::clone(&last_act);
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                if let Some(signal) = signals.forever().next() {
                    // Held until the program has ended: see the invariant above.
                    let mut last_act = lock(&shared);
                    if let Some(last_act) = last_act.take() {
                        eprintln!("clovis: interrupted; {}", last_act());
                    }
                    std::process::exit(128 + signal);
                }
            })
            .map_err(Failure::while_doing("starting the signal thread"))?;
        Ok(Interrupt { last_act })
    }

    /// The guarded part is over: signals end the program again without further ado. Does not return if one came before.
    pub fn release(self) {
        drop(self);
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        lock(&self.last_act).take();
    }
}

/// Removes a folder with all that is in it, also while the interrupted command still makes a file there: it gets no further
/// than that file, since the next one has no folder.
pub fn remove_folder(path: &Path) -> io::Result<()> {
    const TRIES_MAX: u32 = 1000;
    let mut removed = fs::remove_dir_all(path);
    for _ in 1..TRIES_MAX {
        match &removed {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                removed = fs::remove_dir_all(path)
            }
            _ => break,
        }
    }
    removed
}

/// A panic while it was held changes nothing about what has to be removed.
fn lock(last_act: &Mutex<Option<LastAct>>) -> MutexGuard<'_, Option<LastAct>> {
    last_act.lock().unwrap_or_else(PoisonError::into_inner)
}
