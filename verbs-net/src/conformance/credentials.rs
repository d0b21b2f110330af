//! What certificates keep out, over real sockets and real RDMA: strangers, recordings, revoked and ended credentials, borrowed endpoints.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use base::{Endpoint, Right, Rights};

use super::hostile::{hello_bytes, hello_of};
use super::pair::{Kind, Node, World, connected};
use crate::frame::{Frame, FrameBody, HEADER_BYTES};
use crate::security::authority::{Authority, FAR, at};
use crate::{
    Credential, CredentialOptions, NetError, PeerId, RefuseReason, Revocations, StartError, TmConfig,
    TransferMachine, dynamic_endpoint,
};

fn with(text: &str, options: CredentialOptions) -> Arc<Credential> {
    Arc::new(Credential::from_pem(text, options).unwrap())
}

fn credential(text: &str) -> Arc<Credential> {
    with(text, CredentialOptions::default())
}

fn client_endpoint(server: Endpoint, tmid: u16) -> Endpoint {
    dynamic_endpoint(server.nid, 1, tmid)
}

/// Sends a message and answers why it did not arrive, if it did not.
fn say_to(world: &World, client: &mut Node, server: &mut Node) -> Result<(), NetError> {
    let b = server.endpoint();
    let (messages, lost) = (server.messages().len(), client.lost().len());
    client.send(world.now(), b, b"hello");
    world.drive(&mut [client, server], |nodes| {
        nodes[1].messages().len() > messages || nodes[0].lost().len() > lost
    });
    match client.lost().get(lost) {
        Some((_, error)) => Err(error.clone()),
        None => Ok(()),
    }
}

fn refused(reason: RefuseReason) -> Result<(), NetError> {
    Err(NetError::Refused { reason })
}

fn a_peer_has_the_rights_of_its_credential(kind: Kind) {
    let (world, ours) = (World::new(kind), Authority::new());
    let b = world.endpoint();
    let mut server = world.start_as(b, 22, credential(&ours.daemon("control", FAR)), true);
    let reader = credential(&ours.client("reader", "connect,read", FAR));
    let mut client = world.start_as(client_endpoint(b, 1), 11, reader, false);
    assert_eq!(say_to(&world, &mut client, &mut server), Ok(()));
    let peer = server.sender();
    assert_eq!(server.tm.rights(peer).to_string(), "connect,read");
    assert_eq!(server.tm.identity(peer).unwrap().name, "reader");
    let daemon = PeerId { endpoint: b, epoch: 22 };
    assert_eq!(client.tm.rights(daemon), Rights::ALL);
    assert_eq!((server.tm.stats().secured, server.tm.stats().sealed), (1, 0));
    // Another incarnation is a stranger, and what came before the connection went is still judged by who sent it.
    assert_eq!(server.tm.rights(PeerId { epoch: 12, ..peer }), Rights::NONE);
    drop(client);
    world.drive(&mut [&mut server], |nodes| !nodes[0].lost().is_empty());
    assert!(server.tm.rights(peer).has(Right::Read));
    // Where a secret is shared, everybody may do everything.
    let (_, other, peer) = connected(&world);
    assert_eq!(other.tm.rights(peer), Rights::ALL);
}

fn strangers_are_told_what_they_lack(kind: Kind) {
    let (world, ours) = (World::new(kind), Authority::new());
    let b = world.endpoint();
    let mut server = world.start_as(b, 22, credential(&ours.daemon("control", FAR)), true);
    let a = client_endpoint(b, 1);
    let mut plain = world.start_as(a, 11, super::pair::TOKEN, false);
    assert_eq!(say_to(&world, &mut plain, &mut server), refused(RefuseReason::NoCredential));
    assert_eq!(server.tm.stats().last_refused, Some((a, RefuseReason::NoCredential)));
    let foreign = credential(&Authority::new().client("spy", "connect", FAR));
    let mut foreign = world.start_as(client_endpoint(b, 2), 11, foreign, false);
    assert_eq!(say_to(&world, &mut foreign, &mut server), refused(RefuseReason::Untrusted));
    let unable = credential(&ours.client("unable", "read,write", FAR));
    let mut unable = world.start_as(client_endpoint(b, 3), 11, unable, false);
    assert_eq!(say_to(&world, &mut unable, &mut server), refused(RefuseReason::NoConnectRight));
    // A clock that says that the certificate has ended: the listening side's counts.
    let late = ours.client("late", "connect", 2_000);
    let late = with(&late, CredentialOptions { clock: at(1_000), ..CredentialOptions::default() });
    let mut late = world.start_as(client_endpoint(b, 4), 11, late, false);
    assert_eq!(say_to(&world, &mut late, &mut server), refused(RefuseReason::Expired));
    assert!(server.messages().is_empty() && server.ups().is_empty());
    // A client's credential does not listen; nor does anybody where nothing can be shown, or encrypted.
    let config = TmConfig::new(
        world.endpoint(),
        true,
        1,
        credential(&ours.client("me", "connect", FAR)),
        Default::default(),
    );
    let error = TransferMachine::start(&server.locality(), &world.fabric, config).err().unwrap();
    assert!(matches!(error, StartError::NoRightToServe { .. }), "{error}");
    let lo = World::new(Kind::Lo);
    let config =
        TmConfig::new(lo.endpoint(), true, 1, credential(&ours.daemon("d", FAR)), Default::default());
    let error = TransferMachine::start(&server.locality(), &lo.fabric, config).err().unwrap();
    assert!(matches!(error, StartError::NoCertificates { .. }), "{error}");
}

/// Who does not ask for encryption gets it from a peer that does, over each net; who shares a secret is told what it lacks.
fn encryption_is_for_all_if_one_side_asks(kind: Kind) {
    let (world, ours) = (World::new(kind), Authority::new());
    let b = world.endpoint();
    let sealing = || CredentialOptions { encrypts: true, ..CredentialOptions::default() };
    let mut server = world.start_as(b, 22, with(&ours.daemon("control", FAR), sealing()), true);
    let unasked = credential(&ours.client("me", "connect,read", FAR));
    let mut client = world.start_as(client_endpoint(b, 1), 11, unasked, false);
    assert_eq!(say_to(&world, &mut client, &mut server), Ok(()));
    assert_eq!((server.tm.stats().secured, server.tm.stats().sealed), (1, 1));
    assert_eq!((client.tm.stats().secured, client.tm.stats().sealed), (1, 1));
    let mut plain = world.start_as(client_endpoint(b, 2), 11, super::pair::TOKEN, false);
    assert_eq!(say_to(&world, &mut plain, &mut server), refused(RefuseReason::NoCredential));
    // The other way round: the dialling side asks.
    let c = world.endpoint();
    let mut other = world.start_as(c, 23, credential(&ours.daemon("server-1", FAR)), true);
    let asking = with(&ours.client("asking", "connect,read", FAR), sealing());
    let mut asking = world.start_as(client_endpoint(c, 3), 11, asking, false);
    assert_eq!(say_to(&world, &mut asking, &mut other), Ok(()));
    assert_eq!((other.tm.stats().sealed, asking.tm.stats().sealed), (1, 1));
}

fn a_revoked_credential_loses_its_connections(kind: Kind) {
    let (world, ours) = (World::new(kind), Authority::new());
    let b = world.endpoint();
    let revocations = Arc::new(Revocations::default());
    let options = CredentialOptions { revocations: Arc::clone(&revocations), ..CredentialOptions::default() };
    let mut server = world.start_as(b, 22, with(&ours.daemon("control", FAR), options), true);
    let me = credential(&ours.client("me", "connect", FAR));
    let other = credential(&ours.client("other", "connect", FAR));
    let mut client = world.start_as(client_endpoint(b, 1), 11, Arc::clone(&me), false);
    let mut neighbour = world.start_as(client_endpoint(b, 2), 12, other, false);
    assert_eq!(say_to(&world, &mut client, &mut server), Ok(()));
    assert_eq!(say_to(&world, &mut neighbour, &mut server), Ok(()));
    let peer = PeerId { endpoint: client.endpoint(), epoch: 11 };
    revocations.replace(BTreeSet::from([me.identity().id]));
    world.drive(&mut [&mut client, &mut server], |nodes| {
        !nodes[0].lost().is_empty() && !nodes[1].lost().is_empty()
    });
    assert_eq!(server.lost(), [(peer, NetError::Refused { reason: RefuseReason::Revoked })]);
    assert_eq!(server.tm.rights(peer), Rights::NONE);
    world.pass(&mut [&mut client, &mut server], Duration::from_millis(100));
    assert_eq!(say_to(&world, &mut client, &mut server), refused(RefuseReason::Revoked));
    assert_eq!(say_to(&world, &mut neighbour, &mut server), Ok(()));
}

fn a_credential_that_ends_takes_its_connections_along(kind: Kind) {
    let (world, ours) = (World::new(kind), Authority::new());
    let b = world.endpoint();
    // Both clocks stand at 1000 s; the certificate has one second left.
    let options = || CredentialOptions { clock: at(1_000), ..CredentialOptions::default() };
    let mut server = world.start_as(b, 22, with(&ours.daemon("control", FAR), options()), true);
    let short = with(&ours.client("short", "connect", 1_001), options());
    let mut client = world.start_as(client_endpoint(b, 1), 11, short, false);
    assert_eq!(say_to(&world, &mut client, &mut server), Ok(()));
    world.drive(&mut [&mut client, &mut server], |nodes| !nodes[1].lost().is_empty());
    assert_eq!(server.lost()[0].1, NetError::Refused { reason: RefuseReason::Expired });
}

fn nobody_takes_the_endpoint_of_another(kind: Kind) {
    let (world, ours) = (World::new(kind), Authority::new());
    let b = world.endpoint();
    let mut server = world.start_as(b, 22, credential(&ours.daemon("control", FAR)), true);
    let a = client_endpoint(b, 1);
    let mut client = world.start_as(a, 11, credential(&ours.client("me", "connect", FAR)), false);
    assert_eq!(say_to(&world, &mut client, &mut server), Ok(()));
    for epoch in [11, 12] {
        let thief = credential(&ours.client("thief", "connect", FAR));
        let mut thief = world.start_as(a, epoch, thief, false);
        assert_eq!(say_to(&world, &mut thief, &mut server), refused(RefuseReason::NotYours));
    }
    assert_eq!(say_to(&world, &mut client, &mut server), Ok(()));
    assert!(server.lost().is_empty());
    // A daemon gets the place that is its own, whoever sat there.
    let mut daemon = world.start_as(a, 13, credential(&ours.daemon("server-1", FAR)), false);
    assert_eq!(say_to(&world, &mut daemon, &mut server), Ok(()));
}

macro_rules! over_each_net {
    ($($test:ident),* $(,)?) => {
        mod tcp { $(#[test] fn $test() { super::$test(super::Kind::Tcp); })* }
        mod verbs { $(#[test] fn $test() { if super::super::pair::has_rdma() { super::$test(super::Kind::Verbs); } })* }
    };
}

over_each_net!(
    a_peer_has_the_rights_of_its_credential,
    strangers_are_told_what_they_lack,
    encryption_is_for_all_if_one_side_asks,
    a_revoked_credential_loses_its_connections,
    a_credential_that_ends_takes_its_connections_along,
    nobody_takes_the_endpoint_of_another,
);

#[test]
fn a_recorded_connection_opens_nothing() {
    let (world, ours) = (World::new(Kind::Tcp), Authority::new());
    let b = world.endpoint();
    let mut server = world.start_as(b, 22, credential(&ours.daemon("control", FAR)), true);
    // What a client says on its first connection, taken down on the way by somebody in between.
    let between = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = between.local_addr().unwrap().port();
    let to = Endpoint::from_port(b.nid, port).unwrap();
    let mut client =
        world.start_as(client_endpoint(b, 1), 11, credential(&ours.client("me", "connect", FAR)), false);
    client.send(world.now(), to, b"hello");
    client.turn(world.now());
    let (mut near, _) = between.accept().unwrap();
    let mut far = TcpStream::connect(b.socket_address().unwrap()).unwrap();
    for stream in [&near, &far] {
        stream.set_nonblocking(true).unwrap();
    }
    let mut recording = Vec::new();
    let mut bytes = [0; 65536];
    world.drive(&mut [&mut client, &mut server], |nodes| {
        if let Ok(count) = near.read(&mut bytes) {
            recording.extend_from_slice(&bytes[..count]);
            far.write_all(&bytes[..count]).unwrap();
        }
        if let Ok(count) = far.read(&mut bytes) {
            near.write_all(&bytes[..count]).unwrap();
        }
        // Handshake and hello have come, and were good.
        !nodes[1].ups().is_empty()
    });
    assert!(recording.len() > 600, "the certificates alone are longer");
    let before = (server.ups().len(), server.tm.stats().hello_faults);
    let mut again = TcpStream::connect(b.socket_address().unwrap()).unwrap();
    again.write_all(&recording).unwrap();
    world.drive(&mut [&mut server], |nodes| nodes[0].tm.stats().hello_faults > before.1);
    assert_eq!(server.ups().len(), before.0);
    // Nor does a hello in the clear, whatever it says: it is answered in its own words.
    let mut plain = TcpStream::connect(b.socket_address().unwrap()).unwrap();
    plain.write_all(&hello_bytes(&hello_of(client_endpoint(b, 2)))).unwrap();
    let refusals = server.tm.stats().refused_by_us;
    world.drive(&mut [&mut server], |nodes| nodes[0].tm.stats().refused_by_us > refusals);
    plain.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut header = [0; HEADER_BYTES];
    plain.read_exact(&mut header).unwrap();
    let said = Frame::parse(&header, 1).unwrap();
    assert!(matches!(said.body, FrameBody::Reject { reason: RefuseReason::NoCredential, .. }));
}

#[test]
fn garbage_and_half_a_handshake_cost_their_own_connection() {
    let (world, ours) = (World::new(Kind::Tcp), Authority::new());
    let b = world.endpoint();
    let mut server = world.start_as(b, 22, credential(&ours.daemon("control", FAR)), true);
    let me = credential(&ours.client("me", "connect", FAR));
    let first = crate::fuzz::client_hello(&me);
    let damaged = {
        let mut bytes = first.clone();
        bytes[5] ^= 0xff;
        bytes
    };
    let endless = [&[22, 3, 1, 0x40, 0][..], &[1; 16_384]].concat();
    for garbage in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16; 4096], &damaged, &endless, &[21, 3, 3, 0, 2, 2, 40]]
    {
        let before = server.tm.stats().hello_faults + server.tm.stats().misbehaved;
        let mut stream = TcpStream::connect(b.socket_address().unwrap()).unwrap();
        stream.write_all(garbage).unwrap();
        world.drive(&mut [&mut server], |nodes| {
            nodes[0].tm.stats().hello_faults + nodes[0].tm.stats().misbehaved > before
        });
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut rest = Vec::new();
        // Perhaps an alert, then the end of the stream or a reset, never a hang.
        let ended = stream.read_to_end(&mut rest);
        assert!(ended.is_ok() || rest.len() < 64, "{ended:?}");
    }
    // Half a handshake, then silence: dropped like any silent connection.
    let mut half = TcpStream::connect(b.socket_address().unwrap()).unwrap();
    half.write_all(&first[..first.len() / 2]).unwrap();
    world.drive(&mut [&mut server], |nodes| nodes[0].tm.stats().hello_timeouts == 1);
    let mut client = world.start_as(client_endpoint(b, 1), 11, me, false);
    assert_eq!(say_to(&world, &mut client, &mut server), Ok(()));
}
