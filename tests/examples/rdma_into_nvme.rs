//! From RDMA into NVMe and back through one buffer: the server reads a client's memory over RDMA, hands the very buffer to the
//! NVMe controller, and for a read hands the buffer that the controller filled to RDMA. No byte is copied by a CPU of ours.
//!
//! `rdma_into_nvme DEVICE ADDRESS [ROUNDS]`: DEVICE is a file, a block device or `nvme:0000:00:04.0` (build with `--features
//! spdk`) and **is overwritten**; ADDRESS is an IPv4 address of an RDMA device of this machine (`--features rdma`). Both
//! sides run in this process, each with a device context and an arena of its own. Bounded: 20 s for each wait.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use base::units::{MIB, narrow, wide};
use runtime::{
    Arena, ArenaConfig, Buffer, Counters, Locality, LocalityConfig, LocalityHandle, MonotonicClock,
    SharedBuffer,
};
use spdk_stob::{Backend, BlockDone, BlockOp, OpenOptions, is_nvme_address, open_device};
use verbs_sys::{
    Access, Completed, ConnectionEvent, ConnectionManager, ExposureId, Library, Memory, Nic, NicConfig,
    QueuePairId, Remote, Segment, Without, Work,
};

type Failure = Box<dyn std::error::Error>;

const OPERATION_BYTES: usize = 1 << 20;
const RECEIVE_BYTES: usize = 4096;
const WAIT: Duration = Duration::from_secs(20);

fn arena(device: &str) -> Result<Arena, Failure> {
    let config = ArenaConfig { capacity_bytes: 64 * MIB };
    let in_huge_pages = is_nvme_address(device.as_ref()).then(|| Arena::in_huge_pages(config).ok()).flatten();
    Ok(in_huge_pages.map_or_else(|| Arena::new(config), Ok)?)
}

fn until<T>(
    clock: &MonotonicClock,
    what: &str,
    mut find: impl FnMut() -> Result<Option<T>, Failure>,
) -> Result<T, Failure> {
    let end = clock.now() + WAIT;
    loop {
        if let Some(found) = find()? {
            return Ok(found);
        }
        if clock.now() > end {
            return Err(format!("waited {WAIT:?} for {what}").into());
        }
        std::thread::yield_now();
    }
}

/// One end of the connection.
struct Side {
    nic: Nic,
    arena: Arena,
    pair: QueuePairId,
    done: VecDeque<Completed>,
}

impl Side {
    fn open(library: &Library, rdma_device: &str, arena: Arena) -> Result<Side, Failure> {
        let mut nic = library.open_nic(NicConfig {
            device: rdma_device.to_owned(),
            queue_pairs_max: 1,
            sends_per_queue_pair: 16,
            receives: 16,
            receives_without_shared: 16,
            inline_bytes: 64,
            windows_max: 4,
            without: Without::default(),
            arena: arena.clone(),
        })?;
        nic.register(&arena)?;
        let pair = nic.create_queue_pair()?;
        Ok(Side { nic, arena, pair, done: VecDeque::new() })
    }

    fn refill(&mut self) -> Result<(), Failure> {
        let wanted = self.nic.receives_wanted(Some(self.pair));
        let buffers = (0..wanted).filter_map(|_| self.arena.try_alloc(RECEIVE_BYTES)).collect();
        Ok(self.nic.post_receives(Some(self.pair), buffers)?)
    }

    fn buffer(&self) -> Result<Buffer, Failure> {
        Ok(self.arena.try_alloc(OPERATION_BYTES).ok_or("the arena is full")?)
    }

    fn post(&mut self, work: Work) -> Result<(), Failure> {
        self.nic.post(self.pair, &mut VecDeque::from([(0, work)]))?;
        Ok(())
    }

    /// Posts and waits for the end.
    fn run(&mut self, clock: &MonotonicClock, work: Work) -> Result<Memory, Failure> {
        self.post(work)?;
        until(clock, "an RDMA operation", || {
            self.nic.poll(16, &mut self.done);
            while let Some(done) = self.done.pop_front() {
                if let Completed::Work { memory, result, .. } = done {
                    result?;
                    return Ok(Some(memory));
                }
            }
            Ok(None)
        })
    }

    /// Makes memory reachable for the peer.
    fn expose(
        &mut self,
        clock: &MonotonicClock,
        memory: SharedBuffer,
        access: Access,
    ) -> Result<(ExposureId, Remote), Failure> {
        let (id, Segment { address, key, .. }) = self.nic.expose(self.pair, memory, access)?;
        if self.nic.uses_windows() {
            self.run(clock, Work::Bind(id))?;
        }
        Ok((id, Remote { address, key }))
    }

    /// Ends that; the memory is ours again.
    fn conceal(&mut self, clock: &MonotonicClock, id: ExposureId) -> Result<SharedBuffer, Failure> {
        if let Some(memory) = self.nic.conceal(id) {
            return Ok(memory);
        }
        self.post(Work::Invalidate(id))?;
        until(clock, "the end of an exposure", || {
            self.nic.poll(16, &mut self.done);
            while let Some(done) = self.done.pop_front() {
                if let Completed::Concealed { memory, .. } = done {
                    return Ok(Some(memory));
                }
            }
            Ok(None)
        })
    }
}

/// Connects both sides through rdma-cm on one address.
fn connect(
    clock: &MonotonicClock,
    manager: &mut ConnectionManager,
    address: Ipv4Addr,
    client: &mut Side,
    server: &mut Side,
) -> Result<(), Failure> {
    let first = 20_000 + u16::try_from(std::process::id() % 20_000)?;
    let port = (first..first + 200)
        .find(|port| manager.listen(SocketAddrV4::new(address, *port)).is_ok())
        .ok_or("no port to listen on")?;
    manager.dial(address, SocketAddrV4::new(address, port))?;
    let mut up = 0;
    until(clock, "the connection", || {
        while let Some(event) = manager.poll() {
            match event {
                ConnectionEvent::RouteResolved(id) => {
                    manager.prepare(id, &mut client.nic, client.pair)?;
                    client.refill()?;
                    manager.connect(id, &mut client.nic, client.pair, b"client")?;
                }
                ConnectionEvent::Requested { id, .. } => {
                    manager.prepare(id, &mut server.nic, server.pair)?;
                    server.refill()?;
                    manager.accept(id, &mut server.nic, server.pair, b"server")?;
                }
                ConnectionEvent::Accepted { id, .. } => {
                    manager.finish(id, &mut client.nic, client.pair)?;
                    up += 1;
                }
                ConnectionEvent::Established(_) => up += 1,
                other => return Err(format!("{other:?}").into()),
            }
        }
        Ok((up == 2).then_some(()))
    })
}

/// Does one operation on the device.
fn device_op(
    clock: &MonotonicClock,
    backend: &mut dyn Backend,
    op: BlockOp,
) -> Result<Option<Buffer>, Failure> {
    if backend.try_submit(op, 1).is_err() {
        return Err("the device's queue is full".into());
    }
    let mut done: Vec<BlockDone> = Vec::new();
    until(clock, "the device", || {
        backend.flush_queue();
        backend.poll(clock.now(), &mut done);
        let Some(done) = done.pop() else { return Ok(None) };
        done.result?;
        Ok(Some(done.buffer))
    })
}

fn locality(arena: &Arena, counters: &Arc<Counters>) -> LocalityHandle {
    let config = LocalityConfig {
        index: 0,
        name: "rdma_into_nvme".to_owned(),
        seed: 1,
        counters: Arc::clone(counters),
        arena: arena.clone(),
        crowd: None,
    };
    Locality::new(config).handle()
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (device, address, rounds) = match arguments.as_slice() {
        [device, address] => (device, address, 16),
        [device, address, rounds] => (device, address, rounds.parse::<u64>()?),
        _ => return Err("usage: rdma_into_nvme DEVICE ADDRESS [ROUNDS]".into()),
    };
    let (address, clock) = (address.parse::<Ipv4Addr>()?, MonotonicClock::start());
    let counters = Arc::new(Counters::default());

    // One arena of the server, registered with both devices.
    let server_arena = arena(device)?;
    let mut backend = open_device(device, OpenOptions::default())?;
    backend.attach(&locality(&server_arena, &counters));
    backend.register(&server_arena)?;
    let library = Library::open()?;
    let mut manager = library.connection_manager()?;
    let rdma_device = manager.bind_device(address)?;
    let mut server = Side::open(&library, &rdma_device, server_arena.clone())?;
    let client_arena = Arena::new(ArenaConfig { capacity_bytes: 64 * MIB })?;
    let mut client = Side::open(&library, &rdma_device, client_arena)?;
    connect(&clock, &mut manager, address, &mut client, &mut server)?;

    let blocks = wide(OPERATION_BYTES) / base::units::BLOCK_BYTES;
    let places = (backend.geometry().size_blocks / blocks).max(1);
    let mut random = fastrand::Rng::with_seed(7);
    let started = clock.now();
    for round in 0..rounds {
        let start_block = round % places * blocks;
        // A client's write: its memory is exposed, the server reads it.
        let mut source = client.buffer()?;
        random.fill(&mut source);
        let source = source.freeze();
        let (exposure, from) = client.expose(&clock, source.clone(), Access::Read)?;
        let into = server.buffer()?;
        let landed_at = into.as_ptr().addr();
        let Memory::Own(landed) = server.run(&clock, Work::Read { into, from })? else {
            return Err("the RDMA read gave no buffer back".into());
        };
        drop(client.conceal(&clock, exposure)?);
        // The buffer that RDMA filled goes to the NVMe controller as it is.
        let landed = landed.freeze();
        if landed.as_ptr().addr() != landed_at {
            return Err("the buffer moved".into());
        }
        let parts = [landed].into_iter().collect();
        device_op(&clock, backend.as_mut(), BlockOp::Write { start_block, parts })?;
        device_op(&clock, backend.as_mut(), BlockOp::Flush)?;
        // A client's read: the buffer that the controller fills goes to RDMA as it is.
        let buffer = server.buffer()?;
        let read = device_op(&clock, backend.as_mut(), BlockOp::Read { start_block, buffer })?;
        let read = read.ok_or("the read gave no buffer back")?.freeze();
        let mut sink = client.buffer()?;
        sink.fill(0);
        let (exposure, to) = client.expose(&clock, sink.freeze(), Access::Write)?;
        server.run(&clock, Work::Write { from: read, to })?;
        let sink = client.conceal(&clock, exposure)?;
        if sink[..] != source[..] {
            return Err(format!("round {round}: the bytes came back different").into());
        }
    }
    let seconds = clock.now().since(started).as_secs_f64();
    let nic = server.nic.counts();
    println!(
        "{rounds} rounds of {} KiB from RDMA ({rdma_device}) into {device} and back: bytes equal, {} bytes copied, \
         {:.1} MiB/s each way, server: {} RDMA registrations of {} bytes, {} of the device, {:.3} device syscalls and {:.3} device doorbells per operation",
        OPERATION_BYTES >> 10,
        counters.copied_bytes.get(),
        narrow(rounds) as f64 * OPERATION_BYTES as f64 / MIB as f64 / seconds,
        nic.registrations,
        nic.registered_bytes,
        counters.registrations.get(),
        counters.syscalls.get() as f64 / (3 * rounds).max(1) as f64,
        counters.doorbells.get() as f64 / (3 * rounds).max(1) as f64,
    );
    if counters.copied_bytes.get() != 0 {
        return Err("bytes were copied".into());
    }
    Ok(())
}
