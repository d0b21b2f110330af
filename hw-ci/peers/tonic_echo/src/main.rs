//! A peer of `clovis bench rpc`: an echo over tonic (gRPC) and TCP loopback, client and server on a thread each, each with a runtime of one thread,
//! which is where tokio needs least CPU for a request.
//! `tonic_echo MILLISECONDS DEPTH BYTES` prints requests, nanoseconds, and nanoseconds of CPU of both threads.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::uri::PathAndQuery;
use rustix::time::{ClockId, clock_gettime};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::LocalSet;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::server::{NamedService, UnaryService};
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower_service::Service;

type Failure = Box<dyn Error + Send + Sync>;

/// Connections, memory and caches before the clock starts.
const WARMING: Duration = Duration::from_millis(200);
const METHOD: &str = "/clovis.Echo/Echo";

/// `message Echo { bytes payload = 1; }`, what a compiler of protocol buffers makes of it.
#[derive(Clone, PartialEq, prost::Message)]
struct Echo {
    #[prost(bytes = "vec", tag = "1")]
    payload: Vec<u8>,
}

#[derive(Clone)]
struct EchoServer;

impl NamedService for EchoServer {
    const NAME: &'static str = "clovis.Echo";
}

struct Method;

impl UnaryService<Echo> for Method {
    type Response = Echo;
    type Future = std::future::Ready<Result<Response<Echo>, Status>>;

    fn call(&mut self, request: Request<Echo>) -> Self::Future {
        std::future::ready(Ok(Response::new(request.into_inner())))
    }
}

impl Service<http::Request<Body>> for EchoServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            if request.uri().path() != METHOD {
                return Ok(Status::unimplemented("one method is served").into_http());
            }
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<Echo, Echo>::default());
            Ok(grpc.unary(Method, request).await)
        })
    }
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Until the client is done.
async fn serve(listener: std::net::TcpListener, done: oneshot::Receiver<()>) -> Result<(), Failure> {
    listener.set_nonblocking(true)?;
    let incoming = TcpListenerStream::new(TcpListener::from_std(listener)?);
    let server = Server::builder().tcp_nodelay(true).add_service(EchoServer);
    // An error: the client is gone, which is as good.
    let is_done = async { drop(done.await) };
    Ok(server.serve_with_incoming_shutdown(incoming, is_done).await?)
}

async fn ask(to: SocketAddr, lasting: Duration, depth: usize, bytes: usize) -> Result<(), Failure> {
    let channel = Endpoint::from_shared(format!("http://{to}"))?.tcp_nodelay(true).connect().await?;
    for (lasting, is_timed) in [(WARMING, false), (lasting, true)] {
        let (began, used) = (Instant::now(), cpu_time());
        let done = Rc::new(Cell::new(0_u64));
        let mut lanes = Vec::new();
        for _ in 0..depth {
            let (mut grpc, done) = (tonic::client::Grpc::new(channel.clone()), Rc::clone(&done));
            lanes.push(tokio::task::spawn_local(async move {
                while began.elapsed() < lasting {
                    grpc.ready().await?;
                    let codec = ProstCodec::<Echo, Echo>::default();
                    let echo = Request::new(Echo { payload: vec![7; bytes] });
                    let path = PathAndQuery::from_static(METHOD);
                    let echoed: Response<Echo> = grpc.unary(echo, path, codec).await?;
                    assert_eq!(echoed.get_ref().payload.len(), bytes, "an echo is as long as its request");
                    done.set(done.get() + 1);
                }
                Ok::<(), Failure>(())
            }));
        }
        for lane in lanes {
            lane.await??;
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
    let (done, is_done) = oneshot::channel();
    let server = std::thread::spawn(move || runtime()?.block_on(serve(listener, is_done)));
    let asking = ask(to, Duration::from_millis(milliseconds), depth, bytes);
    LocalSet::new().block_on(&runtime()?, asking)?;
    drop(done);
    server.join().map_err(|_| "the server panicked")?
}
