//! The Rust client driven from a foreign thread, as `ffi/bench/ops.c` does from C: COUNT reads of 4 KiB, one after the other, each posted to the
//! client's thread and waited for. `./dev bench ffi` compares the two. Usage: `foreign_thread COUNT [PAUSE_US]` with CLOVIS_CONFIG set; it pauses
//! before each read, so that every one finds the client's thread asleep.
#![forbid(unsafe_code)]

use std::error::Error;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::time::Duration;

use base::ByteExtent;
use client::{Client, ClientConfig, Object, security_of};
use faces::ClusterFile;
use runtime::{
    Arena, ArenaConfig, Counters, Crowd, Locality, LocalityConfig, MailSender, MonotonicClock, copy_counted,
    identity, mailbox,
};
use verbs_net::Fabric;

/// One read: where the bytes go, and how the asking thread hears of it.
struct Shared {
    done: Mutex<(bool, Box<[u8; 4096]>)>,
    changed: Condvar,
}

type Failure = Box<dyn Error + Send + Sync>;

fn serve(sender: &mpsc::Sender<MailSender<Arc<Shared>>>) -> Result<(), Failure> {
    let path = PathBuf::from(std::env::var("CLOVIS_CONFIG")?);
    let file = ClusterFile::parse(&std::fs::read_to_string(&path)?)?;
    let config = ClientConfig {
        local: None,
        control: file.control.endpoint,
        further_controls: file.further_controls(),
        security: security_of(&file, &path, None)?,
        epoch: identity::unique_u64()?,
        op_timeout: Duration::from_secs(30),
        read_verify: false,
    };
    let mut locality = Locality::new(LocalityConfig {
        index: 0,
        name: "foreign".to_owned(),
        seed: identity::unique_u64()?,
        counters: Arc::new(Counters::default()),
        arena: Arena::new(ArenaConfig { capacity_bytes: 512 << 20 })?,
        crowd: Some(Crowd::with_cores(0)), // never spins: see the bench
    });
    let handle = locality.handle();
    locality.block_on(&MonotonicClock::start(), async {
        let client = Client::connect(&handle, &Fabric::Tcp, config).await?;
        let object = client.open("0xbe9c:1".parse()?).await?;
        let (letters, mut receiver) = mailbox::<Arc<Shared>>(1024, handle.unparker());
        sender.send(letters)?;
        while let Some(shared) = receiver.recv().await {
            let (object, own) = (object.clone(), handle.clone());
            drop(
                handle
                    .spawn("foreign-operation", async move { read(&object, &shared, own.counters()).await }),
            );
        }
        Ok::<(), Failure>(())
    })?
}

async fn read(object: &Object, shared: &Shared, counters: &Counters) {
    let parts = object.read(ByteExtent { start: 0, count: 4096 }).await.expect("the bytes are there");
    let mut done = shared.done.lock().unwrap_or_else(PoisonError::into_inner);
    copy_counted(counters, &mut done.1[..], &parts[0]);
    done.0 = true;
    drop(done); // first: the woken thread would run into the lock
    drop(parts);
    shared.changed.notify_all();
}

fn main() -> Result<(), Failure> {
    let count: u64 = std::env::args().nth(1).ok_or("foreign_thread COUNT [PAUSE_US]")?.parse()?;
    let pause: Option<u64> = std::env::args().nth(2).map(|text| text.parse()).transpose()?;
    let (sender, started) = mpsc::channel();
    let thread = std::thread::spawn(move || serve(&sender));
    let letters = started.recv()?;
    let shared = Arc::new(Shared { done: Mutex::new((false, Box::new([0; 4096]))), changed: Condvar::new() });
    for _ in 0..count {
        if let Some(pause) = pause {
            #[allow(clippy::disallowed_methods)] // the time between two operations of a program, as in ops.c
            std::thread::sleep(Duration::from_micros(pause));
        }
        shared.done.lock().unwrap_or_else(PoisonError::into_inner).0 = false;
        letters.try_send(Arc::clone(&shared)).map_err(|_| "the box is full")?;
        let mut done = shared.done.lock().unwrap_or_else(PoisonError::into_inner);
        while !done.0 {
            done = shared.changed.wait(done).unwrap_or_else(PoisonError::into_inner);
        }
    }
    drop(letters);
    thread.join().map_err(|_| "the client's thread panicked")?
}
