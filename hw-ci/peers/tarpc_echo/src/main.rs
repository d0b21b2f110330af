//! The peer of `clovis bench rpc`: an echo over tarpc and TCP loopback, client and server on a thread each, each with a runtime of one thread,
//! which is where tokio needs least CPU for a request.
//! `tarpc_echo MILLISECONDS DEPTH BYTES` prints requests, nanoseconds, and nanoseconds of CPU of both threads.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::error::Error;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::future::try_join_all;
use rustix::time::{ClockId, clock_gettime};
use tarpc::server::{BaseChannel, Channel as _};
use tarpc::tokio_util::codec::{Framed, LengthDelimitedCodec};
use tarpc::{client, context, serde_transport};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;
use tokio_serde::formats::Bincode;

type Failure = Box<dyn Error + Send + Sync>;

/// Connections, memory and caches before the clock starts.
const WARMING: Duration = Duration::from_millis(200);

#[tarpc::service]
trait Echo {
    async fn echo(payload: Vec<u8>) -> Vec<u8>;
}

#[derive(Clone)]
struct Server;

impl Echo for Server {
    async fn echo(self, _: context::Context, payload: Vec<u8>) -> Vec<u8> {
        payload
    }
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// One connection, until it ends.
async fn serve(listener: std::net::TcpListener) -> Result<(), Failure> {
    listener.set_nonblocking(true)?;
    let (stream, _) = TcpListener::from_std(listener)?.accept().await?;
    stream.set_nodelay(true)?;
    let frames = Framed::new(stream, LengthDelimitedCodec::new());
    let transport = serde_transport::new(frames, Bincode::default());
    let requests = BaseChannel::with_defaults(transport).execute(Server.serve());
    requests.for_each(|answer| async { drop(tokio::spawn(answer)) }).await;
    Ok(())
}

async fn ask(to: SocketAddr, lasting: Duration, depth: usize, bytes: usize) -> Result<(), Failure> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let frames = Framed::new(stream, LengthDelimitedCodec::new());
    let transport = serde_transport::new(frames, Bincode::default());
    let echo = EchoClient::new(client::Config::default(), transport).spawn();
    for (lasting, is_timed) in [(WARMING, false), (lasting, true)] {
        let (began, used) = (Instant::now(), cpu_time());
        let done = Rc::new(Cell::new(0_u64));
        let lanes = (0..depth).map(|_| {
            let (echo, done) = (echo.clone(), Rc::clone(&done));
            tokio::task::spawn_local(async move {
                while began.elapsed() < lasting {
                    let echoed = echo.echo(context::current(), vec![7; bytes]).await?;
                    assert_eq!(echoed.len(), bytes, "an echo is as long as its request");
                    done.set(done.get() + 1);
                }
                Ok::<(), client::RpcError>(())
            })
        });
        for lane in try_join_all(lanes).await? {
            lane?;
        }
        if is_timed {
            println!("{} {} {}", done.get(), began.elapsed().as_nanos(), (cpu_time() - used).as_nanos());
        }
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let milliseconds: u64 = arguments.next().ok_or("the first argument is the time in milliseconds")?.parse()?;
    let depth: usize = arguments.next().ok_or("the second is the count of requests in flight")?.parse()?;
    let bytes: usize = arguments.next().ok_or("the third is the bytes of a request")?.parse()?;
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let to = listener.local_addr()?;
    let server = std::thread::spawn(move || runtime()?.block_on(serve(listener)));
    let asking = ask(to, Duration::from_millis(milliseconds), depth, bytes);
    LocalSet::new().block_on(&runtime()?, asking)?;
    // The connection ended with the client, and so the server.
    server.join().map_err(|_| "the server panicked")?
}
