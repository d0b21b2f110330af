//! The command line: every word and flag, in one place. Values that have a type of their own are parsed here, so that a
//! wrong one is refused before anything starts.

use std::path::PathBuf;

use base::{Fid, LayoutWidth, ObjectId};
use clap::{Args, Parser, Subcommand, ValueEnum};
use fops::lock::{OwnerId, Ticket};

/// Object store for HPC: servers, a control daemon, and the tools of users and operators, in one binary.
#[derive(Debug, Parser)]
#[command(name = "clovis", version, max_term_width = 100)]
#[command(after_help = "Start here: clovis quickstart\nDocumentation: README.md, ARCHITECTURE.md, docs/")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The words of `clovis`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a whole cluster in this process, store a file, lose two devices, and read it back
    Quickstart(QuickstartArgs),
    /// Start, stop or look at a cluster of processes on this machine
    Cluster {
        /// What to do with it.
        #[command(subcommand)]
        action: ClusterCommand,
    },
    /// Make, list, show and revoke credentials: who may connect to a cluster, and what they may do
    Credential {
        /// What to do.
        #[command(subcommand)]
        action: crate::credential::args::CredentialCommand,
    },
    /// Run the control daemon in the foreground
    Control(ControlArgs),
    /// Run one server process in the foreground
    Server(ServerArgs),
    /// Store a file as an object (a present object is replaced as a whole)
    Cp(CpArgs),
    /// Write an object's bytes to standard output or to a file
    Cat(CatArgs),
    /// Show an object's record
    Stat(StatArgs),
    /// Delete objects
    Rm(RmArgs),
    /// List objects
    Ls(LsArgs),
    /// Plan, apply, show and take back changes of the cluster file
    Conf {
        /// What to do with it.
        #[command(subcommand)]
        action: ConfCommand,
    },
    /// Show the whole cluster as a tree, with states and what to do next
    Status(StatusArgs),
    /// Check this machine, and a cluster's processes, clocks and space; says what to mend
    Doctor(crate::doctor::DoctorArgs),
    /// List changes of states, in their order
    Events(EventsArgs),
    /// Watch an object (what others notify on it), a lock or the configuration; or show who watches
    Watch(WatchArgs),
    /// Tell everybody who watches an object something, and show who acknowledged it
    Notify(NotifyArgs),
    /// List, take, release and break named locks
    Lock {
        /// What to do.
        #[command(subcommand)]
        action: LockCommand,
    },
    /// List who holds which objects alone or shared, and hold one
    Credit {
        /// What to do.
        #[command(subcommand)]
        action: CreditCommand,
    },
    /// List and locate devices, take one out and back, give one up
    Device {
        /// What to do with it.
        #[command(subcommand)]
        action: DeviceCommand,
    },
    /// Show how far repairs of replaced devices are; pause, resume, abort, start them again
    Repair {
        /// What to do.
        #[command(subcommand)]
        action: RepairCommand,
    },
    /// Move the objects of older versions of a pool to its newest one; pause, resume, abort that, show how far it is
    Rebalance {
        /// What to do.
        #[command(subcommand)]
        action: RebalanceCommand,
    },
    /// Make and expand pools; show their layout, devices, how much they hold
    Pool {
        /// What to do.
        #[command(subcommand)]
        action: PoolCommand,
    },
    /// Format, check or look at one device, without a cluster
    Stob {
        /// What to do with it.
        #[command(subcommand)]
        action: StobCommand,
    },
    /// Look at networks, and try them: list, ping, selftest
    Net {
        /// What to do.
        #[command(subcommand)]
        action: crate::net::NetCommand,
    },
    /// Look at what requests did, in running and in killed processes: dump, report, follow
    Addb {
        /// What to do.
        #[command(subcommand)]
        action: crate::addb::AddbCommand,
    },
    /// Show what a cluster does now: requests in a second and how long they take, by process and by fop
    Top(crate::addb::TopArgs),
    /// Measure this machine against peers and limits, as ratios
    Bench(crate::bench::BenchArgs),
    /// Print the script that lets a shell complete the words and flags of clovis
    Completions(CompletionsArgs),
    /// Write the man pages of clovis and of each of its words into a folder
    Man(ManArgs),
}

/// `clovis completions`
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// For which shell
    #[arg(value_enum)]
    pub shell: ShellArg,
}

/// Shells that completions are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ShellArg {
    Bash,
    Zsh,
    Fish,
}

/// `clovis man`
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Folder for the pages, made if it is not there: PREFIX/share/man/man1
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
}

/// `clovis quickstart`
#[derive(Debug, Args)]
pub struct QuickstartArgs {
    /// File to store; without it, bytes are generated
    pub file: Option<PathBuf>,
    /// Folder for the device files, emptied at the end (default: a temporary one, removed at the end)
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Number of devices, each a file in the folder
    #[arg(long, value_name = "COUNT", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub devices: u32,
    /// Parity groups: N data, K parity, S spare units
    #[arg(long, value_name = "N+K+S", default_value = "4+2+1")]
    pub layout: LayoutWidth,
    /// Bytes to generate if no file is given
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = parse_size)]
    pub size: u64,
    /// Keep the folder
    #[arg(long)]
    pub keep: bool,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

/// `clovis cluster ...`
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Make the folder: configuration, device files, credentials of the daemons and of its administrator; start nothing
    Init(ClusterInitArgs),
    /// Start the daemons; the first time, make the folder and its configuration
    Start(ClusterStartArgs),
    /// Ask the daemons to stop and wait until they have
    Stop(ClusterStopArgs),
    /// Show processes and devices
    Status(ClusterStatusArgs),
}

/// What a new cluster shall be.
#[derive(Debug, Args)]
pub struct ClusterShapeArgs {
    /// Folder of the cluster: configuration, credentials, device files, logs
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Control daemons: 1, or 3 or 5 that have one state and go on without one or two of them [default: 1]
    #[arg(long, value_name = "COUNT", value_parser = parse_controls)]
    pub control: Option<u32>,
    /// Server processes [default: 4]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub servers: Option<u32>,
    /// Localities of each server: threads with an endpoint and devices of their own [default: 1]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub localities: Option<u32>,
    /// Devices of each server, each a file in the folder [default: 2]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub devices_per_server: Option<u32>,
    /// Network between the processes
    #[arg(long, value_name = "NETWORK", value_enum, default_value_t = Transport::Tcp)]
    pub transport: Transport,
    /// Parity groups: N data, K parity, S spare units [default: 4+2+1]
    #[arg(long, value_name = "N+K+S")]
    pub layout: Option<LayoutWidth>,
    /// Size of each device file, preallocated [default: 512M]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub device_size: Option<u64>,
    /// First of the ports to listen on (default: free ones are looked for)
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(4096..))]
    pub first_port: Option<u16>,
    /// Metrics for Prometheus on the loopback: control's at this port, with the status page, the servers' at the next ones (default: none)
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1024..))]
    pub metrics_port: Option<u16>,
    /// How its members prove that they are [default: shared]
    #[arg(long, value_name = "HOW", value_enum)]
    pub security: Option<SecurityArg>,
    /// Encrypt everything between its processes, not the hello of each connection only (with certificates, over tcp and verbs)
    #[arg(long)]
    pub encrypt: bool,
}

/// How members prove that they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SecurityArg {
    /// Each has a certificate with rights of its own
    Certificates,
    /// All share a secret that goes over the wire in the clear
    Shared,
}

/// `clovis cluster init`
#[derive(Debug, Args)]
pub struct ClusterInitArgs {
    /// The cluster.
    #[command(flatten)]
    pub shape: ClusterShapeArgs,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `clovis cluster start`
#[derive(Debug, Args)]
pub struct ClusterStartArgs {
    /// The cluster.
    #[command(flatten)]
    pub shape: ClusterShapeArgs,
    /// Seconds to wait for every process to be ready
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub wait: u64,
}

/// Networks that a cluster can be started on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    Tcp,
    Verbs,
}

/// `clovis cluster stop`
#[derive(Debug, Args)]
pub struct ClusterStopArgs {
    /// Folder of the cluster
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Stop these daemons alone, as `cluster status` names them (control, server-2); may be given again
    #[arg(long, value_name = "NAME")]
    pub only: Vec<String>,
}

/// `clovis cluster status`
#[derive(Debug, Args)]
pub struct ClusterStatusArgs {
    /// Folder of the cluster
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Print one JSON object instead of tables
    #[arg(long)]
    pub json: bool,
}

/// `clovis control`
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct ControlArgs {
    /// What to do; nothing: run one in the foreground.
    #[command(subcommand)]
    pub action: Option<ControlCommand>,
    /// How to run it.
    #[command(flatten)]
    pub run: Option<ControlRunArgs>,
}

/// `clovis control ...`
#[derive(Debug, Subcommand)]
pub enum ControlCommand {
    /// List, add and remove control daemons that have one state
    Member {
        /// Which.
        #[command(subcommand)]
        action: MemberCommand,
    },
    /// Write a copy of control's state (configuration, locks, loans, events) to a file, while it runs
    Backup(ControlBackupArgs),
    /// Put a backup into a new store, while no control daemon runs
    Restore(ControlRestoreArgs),
}

/// `clovis control backup`
#[derive(Debug, Args)]
pub struct ControlBackupArgs {
    /// File to write; one that is there is replaced
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Which cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `clovis control restore`
#[derive(Debug, Args)]
pub struct ControlRestoreArgs {
    /// The backup
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Which of several gets it; it is then alone, and the others join it with blank stores [default: the one of the [control] section]
    #[arg(long, value_name = "N")]
    pub number: Option<u64>,
    /// Also if the cluster has gone on since: what was changed is lost, and a device that failed since is used with its old bytes
    #[arg(long)]
    pub force: bool,
    /// Which cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `clovis control member ...`
#[derive(Debug, Subcommand)]
pub enum MemberCommand {
    /// Show what each control daemon says of itself and the others
    List(MemberListArgs),
    /// Take one in that runs, was started with --first-start join, and is in the cluster file in force
    Add(MemberChangeArgs),
    /// Take one out, also one that is gone for good
    Remove(MemberChangeArgs),
}

/// `clovis control member list`
#[derive(Debug, Args)]
pub struct MemberListArgs {
    /// Which cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// Machine-readable
    #[arg(long)]
    pub json: bool,
}

/// `clovis control member add|remove`
#[derive(Debug, Args)]
pub struct MemberChangeArgs {
    /// Number of the control daemon
    pub number: u64,
    /// Which cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// What a blank store of one of several control daemons is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FirstStartArg {
    /// The cluster is new, and this daemon is one of its first
    Found,
    /// The cluster runs, and this daemon waits to be taken in
    Join,
}

/// `clovis control`, running.
#[derive(Debug, Args)]
pub struct ControlRunArgs {
    /// The cluster's configuration file
    #[arg(long, env = "CLOVIS_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    /// The daemon's credential [default: credentials/control.pem beside the configuration file, of further ones control-N.pem]
    #[arg(long, value_name = "FILE")]
    pub credential: Option<PathBuf>,
    /// Which of several this is [default: the one of the [control] section]
    #[arg(long, env = "CLOVIS_CONTROL_NUMBER", value_name = "N")]
    pub number: Option<u64>,
    /// Its store is blank, and this is what it is to become: for one of several, once in its life
    #[arg(long, value_name = "HOW", value_enum)]
    pub first_start: Option<FirstStartArg>,
}

/// `clovis server`
#[derive(Debug, Args)]
pub struct ServerArgs {
    /// The cluster's configuration file
    #[arg(long, env = "CLOVIS_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    /// The daemon's credential [default: credentials/server-N.pem beside the configuration file]
    #[arg(long, value_name = "FILE")]
    pub credential: Option<PathBuf>,
    /// Which server of the configuration this is
    #[arg(long, value_name = "FID")]
    pub process: Fid,
    /// Cores for its localities, such as 0-3,8: each locality stays on one of them [default: the system's choice]
    #[arg(long, value_name = "LIST")]
    pub cores: Option<CoreList>,
}

/// Cores by their numbers, as `0-3,8`; each once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreList(pub Vec<usize>);

impl std::str::FromStr for CoreList {
    type Err = String;

    fn from_str(text: &str) -> Result<CoreList, String> {
        let mut cores = Vec::new();
        for part in text.split(',') {
            let number = |word: &str| {
                word.parse().map_err(|_| format!("{word:?} is no core: cores are listed as in 0-3,8"))
            };
            let (first, last): (usize, usize) = match part.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None => (number(part)?, number(part)?),
            };
            if last < first || last - first > CORES_MAX {
                return Err(format!("{part}: a row of cores goes up, over at most {CORES_MAX} of them"));
            }
            for core in first..=last {
                if cores.contains(&core) {
                    return Err(format!("core {core} is there twice"));
                }
                cores.push(core);
            }
        }
        Ok(CoreList(cores))
    }
}

/// The longest row of cores.
const CORES_MAX: usize = 4096;

/// Where the cluster is, for every command that talks to one.
#[derive(Clone, Debug, Args)]
pub struct ConnectArgs {
    /// The cluster's configuration file
    #[arg(long, env = "CLOVIS_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Credential to show [default: credentials/admin.pem beside the configuration file]
    #[arg(long, env = "CLOVIS_CREDENTIAL", value_name = "FILE")]
    pub credential: Option<PathBuf>,
    /// Seconds until an operation gives up
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub timeout: u64,
}

/// What a change is made under.
#[derive(Debug, Args)]
pub struct HoldArgs {
    /// Write under a lock, OWNER:EPOCH as `clovis lock take` printed it: refused once the lock is broken
    #[arg(long, value_name = "TICKET", conflicts_with = "exclusive")]
    pub ticket: Option<Ticket>,
    /// Hold the object alone meanwhile: fails if another command or client holds it
    #[arg(short = 'x', long)]
    pub exclusive: bool,
    /// With --exclusive: wait so many seconds for those who hold it
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=86_400), requires = "exclusive")]
    pub wait: u64,
}

/// An object that is named, or one that control finds a name for.
#[derive(Clone, Copy, Debug)]
pub enum ObjectChoice {
    /// HI:LO
    Named(ObjectId),
    /// `new`
    New,
}

impl std::str::FromStr for ObjectChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<ObjectChoice, String> {
        match text {
            "new" => Ok(ObjectChoice::New),
            text => text.parse().map(ObjectChoice::Named).map_err(|error| format!("{error}, or `new`")),
        }
    }
}

/// `clovis cp`
#[derive(Debug, Args)]
pub struct CpArgs {
    /// File to store
    pub file: PathBuf,
    /// Object id, HI:LO; or `new`: one that nobody has had, which is printed
    pub id: ObjectChoice,
    /// Unit size (a power of two from 4K to 1M); default: the pool's
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub unit: Option<u64>,
    /// Pool that a new object goes to, by name or fid; default: the first one
    #[arg(long, value_name = "POOL")]
    pub pool: Option<String>,
    /// Fail if the object exists
    #[arg(short = 'n', long)]
    pub no_replace: bool,
    /// Under what.
    #[command(flatten)]
    pub hold: HoldArgs,
    /// No progress bar
    #[arg(short, long)]
    pub quiet: bool,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `clovis cat`
#[derive(Debug, Args)]
pub struct CatArgs {
    /// Object id, HI:LO
    pub id: ObjectId,
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Read the parity units too and compare
    #[arg(short = 'r', long)]
    pub verify: bool,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `clovis stat`
#[derive(Debug, Args)]
pub struct StatArgs {
    /// Object id, HI:LO
    pub id: ObjectId,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `clovis rm`
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Object ids, HI:LO
    #[arg(required = true)]
    pub ids: Vec<ObjectId>,
    /// An object that does not exist is no error
    #[arg(short, long)]
    pub force: bool,
    /// Under what.
    #[command(flatten)]
    pub hold: HoldArgs,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `clovis ls`
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Only the ids
    #[arg(short = '1', long)]
    pub ids: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `clovis status`
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `clovis events`
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Only those after this number
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub after: u64,
    /// Go on: print each as it comes, until interrupted
    #[arg(short, long)]
    pub follow: bool,
    /// One JSON object per line
    #[arg(long)]
    pub json: bool,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `clovis watch`
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Object id, HI:LO, whether it is there or not
    #[arg(required_unless_present_any = ["lock", "configuration", "list"])]
    pub object: Option<ObjectId>,
    /// Print what becomes of this lock, of the object if one is named
    #[arg(long, value_name = "NAME", conflicts_with = "configuration")]
    pub lock: Option<String>,
    /// Print each new version of the configuration
    #[arg(long, conflicts_with = "object")]
    pub configuration: bool,
    /// Show who watches, and end: an object, a lock, the configuration, or everything
    #[arg(long)]
    pub list: bool,
    /// Who watches, for people: 1 to 64 bytes (default: watch-PID)
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// What to acknowledge with: at most 512 bytes
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub reply: String,
    /// Seconds of silence after which this watcher is forgotten; until then it is missed by name
    #[arg(long, value_name = "SECONDS", default_value_t = faces::limits::WATCH_LEASE_DEFAULT_MS / 1000, value_parser = clap::value_parser!(u32).range(1..=120))]
    pub lease: u32,
    /// End after so many notifications (default: when it is interrupted)
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// One JSON object per line
    #[arg(long)]
    pub json: bool,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `clovis notify`
#[derive(Debug, Args)]
pub struct NotifyArgs {
    /// Object id, HI:LO
    pub object: ObjectId,
    /// What to say: at most 16 KiB
    #[arg(default_value = "")]
    pub payload: String,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// The cluster's configuration file
    #[arg(long, env = "CLOVIS_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Credential to show [default: credentials/admin.pem beside the configuration file]
    #[arg(long, env = "CLOVIS_CREDENTIAL", value_name = "FILE")]
    pub credential: Option<PathBuf>,
    /// Seconds to wait for acknowledgements
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=25))]
    pub timeout: u64,
}

/// `clovis credit ...`
#[derive(Debug, Subcommand)]
pub enum CreditCommand {
    /// Show who holds what: objects that are held, and ranges that are handed out
    List(CreditListArgs),
    /// Hold an object until this command is interrupted
    Hold(CreditHoldArgs),
}

/// `clovis credit list`
#[derive(Debug, Args)]
pub struct CreditListArgs {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `clovis credit hold`
#[derive(Debug, Args)]
pub struct CreditHoldArgs {
    /// Object id, HI:LO
    pub object: ObjectId,
    /// Beside others that hold it shared
    #[arg(short, long)]
    pub shared: bool,
    /// Wait so many seconds for those who hold it
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub wait: u64,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `clovis lock ...`
#[derive(Debug, Subcommand)]
pub enum LockCommand {
    /// Show who holds which lock: since when, from where, why
    List(LockListArgs),
    /// Take a lock; it stays taken when this command ends, unless --on-death fence or --cooperative
    Take(LockTakeArgs),
    /// Have a request run by the program that holds a lock, and print its answer
    Ask(LockAskArgs),
    /// Give a lock back
    Release(LockReleaseArgs),
    /// Take a lock away from its owner, whose writes every server refuses from then on
    Break(LockBreakArgs),
}

/// Which lock.
#[derive(Debug, Args)]
pub struct LockNameArgs {
    /// Its name
    pub name: String,
    /// The object that it belongs to, HI:LO (default: it is the cluster's)
    #[arg(long, value_name = "ID")]
    pub object: Option<ObjectId>,
}

/// `clovis lock list`
#[derive(Debug, Args)]
pub struct LockListArgs {
    /// Only the locks of this object, HI:LO
    #[arg(long, value_name = "ID")]
    pub object: Option<ObjectId>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `clovis lock take`
#[derive(Debug, Args)]
pub struct LockTakeArgs {
    /// Lock.
    #[command(flatten)]
    pub lock: LockNameArgs,
    /// Hexadecimal number of the owner (default: a new one, printed)
    #[arg(long, value_name = "OWNER")]
    pub owner: Option<OwnerId>,
    /// Others may hold it at the same time, if they share it too
    #[arg(long)]
    pub shared: bool,
    /// Fail at once if it is not free
    #[arg(short = 'n', long = "try")]
    pub try_once: bool,
    /// What happens when the holder dies; with `fence` this command is the holder, and stays until it is interrupted
    #[arg(long, value_enum, default_value_t = OnDeathArg::Hold)]
    pub on_death: OnDeathArg,
    /// Stay, and give it back when somebody else wants it
    #[arg(long)]
    pub cooperative: bool,
    /// Do not give it back to those who ask, and tell them this: at most 200 bytes
    #[arg(long, value_name = "REASON", requires = "cooperative")]
    pub refuse: Option<String>,
    /// Run requests of others (clovis lock ask) by this shell command: the request is its input, what it prints (at most 500 bytes) the answer, CLOVIS_TICKET the ticket
    #[arg(long, value_name = "COMMAND", requires = "cooperative")]
    pub run: Option<String>,
    /// What for, shown to others
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub why: String,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `clovis lock ask`
#[derive(Debug, Args)]
pub struct LockAskArgs {
    /// Lock.
    #[command(flatten)]
    pub lock: LockNameArgs,
    /// The request: at most 16 KB
    #[arg(default_value = "")]
    pub request: String,
    /// Hexadecimal number of the owner who is to run it, if several hold the lock
    #[arg(long, value_name = "OWNER")]
    pub owner: Option<OwnerId>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// The cluster's configuration file
    #[arg(long, env = "CLOVIS_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Credential to show [default: credentials/admin.pem beside the configuration file]
    #[arg(long, env = "CLOVIS_CREDENTIAL", value_name = "FILE")]
    pub credential: Option<PathBuf>,
    /// Seconds to wait for the answer
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=25))]
    pub timeout: u64,
}

/// What happens to a lock whose holder died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnDeathArg {
    /// It stays until it is released or broken
    Hold,
    /// The holder is fenced, then the lock passes on
    Fence,
}

/// `clovis lock release`
#[derive(Debug, Args)]
pub struct LockReleaseArgs {
    /// Lock.
    #[command(flatten)]
    pub lock: LockNameArgs,
    /// Hexadecimal number of its owner
    #[arg(long, value_name = "OWNER")]
    pub owner: OwnerId,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `clovis lock break`
#[derive(Debug, Args)]
pub struct LockBreakArgs {
    /// Lock.
    #[command(flatten)]
    pub lock: LockNameArgs,
    /// Hexadecimal number of the owner who loses it
    #[arg(long, value_name = "OWNER")]
    pub owner: OwnerId,
    /// Why, shown to others
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub why: String,
    /// Begin only; the break goes on without this command
    #[arg(long)]
    pub no_wait: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `clovis conf ...`
#[derive(Debug, Subcommand)]
pub enum ConfCommand {
    /// Show what an edited cluster file would change, and when each change takes effect
    Plan(ConfPlanArgs),
    /// Put an edited cluster file in force, as one transaction
    Apply(ConfApplyArgs),
    /// Print the cluster file in force, or an earlier one, without its credential
    Show(ConfShowArgs),
    /// List the transactions that control keeps, newest first
    History(ConfHistoryArgs),
    /// Put the cluster file of an earlier transaction in force again
    Rollback(ConfRollbackArgs),
}

/// `clovis conf plan`
#[derive(Debug, Args)]
pub struct ConfPlanArgs {
    /// The edited cluster file (default: the cluster's own)
    pub file: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `clovis conf apply`
#[derive(Debug, Args)]
pub struct ConfApplyArgs {
    /// The edited cluster file (default: the cluster's own)
    pub file: Option<PathBuf>,
    /// Why, for the history (at most 200 bytes)
    #[arg(short = 'm', long, value_name = "TEXT", default_value = "")]
    pub note: String,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `clovis conf show`
#[derive(Debug, Args)]
pub struct ConfShowArgs {
    /// Number of the transaction; 0 is the one in force
    #[arg(default_value_t = 0)]
    pub transaction: u64,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `clovis conf history`
#[derive(Debug, Args)]
pub struct ConfHistoryArgs {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `clovis conf rollback`
#[derive(Debug, Args)]
pub struct ConfRollbackArgs {
    /// Number of the transaction
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub transaction: u64,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `clovis rebalance ...`
#[derive(Debug, Subcommand)]
pub enum RebalanceCommand {
    /// Move the objects of older versions to the newest one, and show how far that is
    Start(RebalanceStartArgs),
    /// Let it stand still; returns when nothing is moved any more
    Pause(RebalanceOrderArgs),
    /// Let a paused one go on
    Resume(RebalanceOrderArgs),
    /// End it; what was moved stays where it is now
    Abort(RebalanceOrderArgs),
    /// Show how far rebalances are, and those that are over
    Status(RebalanceStatusArgs),
}

/// `clovis rebalance start`
#[derive(Debug, Args)]
pub struct RebalanceStartArgs {
    /// The pool's name or fid (default: the first one)
    pub pool: Option<String>,
    /// Only give the order: the servers go on by themselves
    #[arg(long)]
    pub detach: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `clovis rebalance pause|resume|abort`
#[derive(Debug, Args)]
pub struct RebalanceOrderArgs {
    /// The pool's name or fid (default: the first one)
    pub pool: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `clovis rebalance status`
#[derive(Debug, Args)]
pub struct RebalanceStatusArgs {
    /// Only of this pool, by name or fid
    pub pool: Option<String>,
    /// Show one that runs until it is over
    #[arg(long)]
    pub follow: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `clovis pool ...`
#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// Make a pool of devices that are in none yet
    Create(PoolCreateArgs),
    /// List the pools with their sums
    List(PoolListArgs),
    /// Show a pool with its versions and devices
    Show(PoolShowArgs),
    /// Give a pool more devices: a new version of it, which new objects go to
    Expand(PoolExpandArgs),
}

/// `clovis pool create`
#[derive(Debug, Args)]
pub struct PoolCreateArgs {
    /// Its name: letters, digits, - _ .
    pub name: String,
    /// Data, parity and spare units of a parity group, N+K+S
    #[arg(long, value_name = "N+K+S")]
    pub layout: LayoutWidth,
    /// Devices, with commas between: FID, FID..FID (all from one to the other in the cluster file), or server-N (all of its that are in no pool)
    #[arg(long, value_name = "DEVICE", value_delimiter = ',', required = true)]
    pub devices: Vec<String>,
    /// Unit size where an object's creator chooses none (a power of two from 4K to 1M); default: the first pool's
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub unit: Option<u64>,
    /// What changes, and for whom.
    #[command(flatten)]
    pub change: PoolChangeArgs,
}

/// `clovis pool expand`
#[derive(Debug, Args)]
pub struct PoolExpandArgs {
    /// The pool's name or fid
    pub pool: String,
    /// Devices that are added, with commas between: FID, FID..FID (all from one to the other in the cluster file), or server-N (all of its that are in no pool)
    #[arg(long, value_name = "DEVICE", value_delimiter = ',', required = true)]
    pub devices: Vec<String>,
    /// What changes, and for whom.
    #[command(flatten)]
    pub change: PoolChangeArgs,
}

/// A change of the cluster file that a command makes.
#[derive(Debug, Args)]
pub struct PoolChangeArgs {
    /// Show what would change, and change nothing
    #[arg(long)]
    pub plan: bool,
    /// Why, for the history (at most 200 bytes); default: the command
    #[arg(short = 'm', long, value_name = "TEXT")]
    pub note: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `clovis pool list`
#[derive(Debug, Args)]
pub struct PoolListArgs {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `clovis pool show`
#[derive(Debug, Args)]
pub struct PoolShowArgs {
    /// The pool's name or fid (default: the first one)
    pub pool: Option<String>,
    /// Read the records of all objects, and count how many lie in each version
    #[arg(long)]
    pub count: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `clovis device ...`
#[derive(Debug, Subcommand)]
pub enum DeviceCommand {
    /// List devices: state, room, since when and why
    List(DeviceListArgs),
    /// Show where a device is: machine, process, path, disk, rack
    Locate(DeviceJsonArgs),
    /// Take a device out for a while: reads rebuild its units, writes that need it wait or fail
    Detach(DeviceDetachArgs),
    /// Take a detached device back
    Attach(DeviceJsonArgs),
    /// Give a failed device another disk, or its own formatted, and copy everything to it that it has to hold
    Replace(DeviceReplaceArgs),
    /// Declare a device FAILED: writes skip it, reads rebuild its units
    Fail(DeviceArgs),
    /// Fault rule: each access to the device fails with EIO from now on, until its server restarts
    Break(DeviceArgs),
}

/// `clovis device list`
#[derive(Debug, Args)]
pub struct DeviceListArgs {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `clovis device locate` and `clovis device attach`
#[derive(Debug, Args)]
pub struct DeviceJsonArgs {
    /// The device's fid, or its position in the pool from 0
    pub device: String,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `clovis device detach`
#[derive(Debug, Args)]
pub struct DeviceDetachArgs {
    /// The device's fid, or its position in the pool from 0
    pub device: String,
    /// Also if more devices are away then than the layout reads without: objects cannot be read meanwhile
    #[arg(long)]
    pub force: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `clovis device replace`
#[derive(Debug, Args)]
pub struct DeviceReplaceArgs {
    /// The device's fid, or its position in the pool from 0
    pub device: String,
    /// How long to wait until its server has formatted the disk
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub wait: u64,
    /// Leave as soon as the disk is formatted, and the copy to the server
    #[arg(long)]
    pub detach: bool,
    /// Print one JSON object, and no progress
    #[arg(long)]
    pub json: bool,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// What to do about repairs.
#[derive(Debug, Subcommand)]
pub enum RepairCommand {
    /// Start a repair that failed again, from the first object, and follow it; one of a replaced device starts by itself
    Start(RepairStartArgs),
    /// Let the copy stand still until it is resumed; the device stays in repair
    Pause(RepairOrderArgs),
    /// Let a paused copy go on where it is
    Resume(RepairOrderArgs),
    /// Give the new disk up, or the copy to spare units: the device is failed again. On the way back from spare units: its units stay there
    Abort(RepairOrderArgs),
    /// Show how far repairs, and copies to spare units and back, are: objects, bytes, rate, time left, what is lost
    Status(RepairStatusArgs),
}

/// `clovis repair start`
#[derive(Debug, Args)]
pub struct RepairStartArgs {
    /// The device's fid, or its position in the pool from 0: a failed one, whose units are rebuilt in spare units then, or one whose repair failed
    /// [default: all whose repair failed]
    pub device: Option<String>,
    /// Leave once the order is given
    #[arg(long)]
    pub detach: bool,
    /// Print JSON, and no progress
    #[arg(long)]
    pub json: bool,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `clovis repair pause`, `resume` and `abort`
#[derive(Debug, Args)]
pub struct RepairOrderArgs {
    /// The device's fid, or its position in the pool from 0 [default: all that fit; of abort, the only one]
    pub device: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `clovis repair status`
#[derive(Debug, Args)]
pub struct RepairStatusArgs {
    /// The device's fid, or its position in the pool from 0 [default: all that were ever replaced]
    pub device: Option<String>,
    /// Show a progress bar until the repair (the first that is not over) is done; status 1 if it fails
    #[arg(long)]
    pub follow: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Names a device.
#[derive(Debug, Args)]
pub struct DeviceArgs {
    /// The device's fid, or its position in the pool from 0
    pub device: String,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Parses a number of control daemons. Errors: one that gives no majority more than a smaller one does.
fn parse_controls(text: &str) -> Result<u32, String> {
    match text {
        "1" | "3" | "5" => text.parse().map_err(|error| format!("{error}")),
        _ => Err(
            "1, 3 or 5 control daemons: an even number goes on without no more of them than one less does"
                .to_owned(),
        ),
    }
}

/// Parses `64M`, `4096`, `1G`, `64KiB`: bytes with an optional binary suffix.
///
/// Errors: no number, an unknown suffix, or more than 2^64-1 bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|letter: char| letter.is_ascii_digit()).len();
    let (number, suffix) = text.split_at(digits);
    let shift = match suffix.to_ascii_uppercase().trim_end_matches('B').trim_end_matches('I') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(format!("{text:?} is not a size: write 4096, 64K, 64M, 1G or 1T (powers of 1024)")),
    };
    let value: u64 =
        number.parse().map_err(|_| format!("{text:?} is not a size: write 4096, 64K, 64M or 1G"))?;
    value.checked_mul(1 << shift).ok_or_else(|| format!("{text:?} is more than 2^64-1 bytes"))
}

/// `clovis stob ...`
#[derive(Debug, Subcommand)]
pub enum StobCommand {
    /// Make a device (file or block device) an empty domain
    Format(StobFormatArgs),
    /// Show what a device says of itself
    Info(StobDeviceArgs),
    /// Check all of a device: every block's owners, every checksum, the sums. Status 1 if something is wrong at the end
    Check(StobCheckArgs),
    /// Write all metadata of a device as text
    Dump(StobDumpArgs),
    /// Measure a formatted device: what it holds stays, what is written for it goes away again
    Bench(StobBenchArgs),
}

/// `clovis stob format`
#[derive(Debug, Args)]
pub struct StobFormatArgs {
    /// File or block device
    pub device: PathBuf,
    /// Make a new file of this size
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub size: Option<u64>,
    /// The device's fid [default: a random one]
    #[arg(long, value_name = "FID")]
    pub fid: Option<Fid>,
    /// Id of its cluster
    #[arg(long, value_name = "ID", default_value_t = 0)]
    pub cluster: u64,
    /// Give up whatever the device holds
    #[arg(long, conflicts_with = "size")]
    pub force: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `clovis stob info`
#[derive(Debug, Args)]
pub struct StobDeviceArgs {
    /// File or block device
    pub device: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `clovis stob dump`
#[derive(Debug, Args)]
pub struct StobDumpArgs {
    /// File or block device
    pub device: PathBuf,
}

/// `clovis stob bench`
#[derive(Debug, Args)]
pub struct StobBenchArgs {
    /// File or block device
    pub device: PathBuf,
    /// Bytes of the stob that is written and read
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "256M")]
    pub size: u64,
    /// Seconds of each row
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
    /// Operations at once
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=128))]
    pub depth: u64,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `clovis stob check`
#[derive(Debug, Args)]
pub struct StobCheckArgs {
    /// File or block device
    pub device: PathBuf,
    /// Put right what can be without giving up anything reachable, and say what was done
    #[arg(long)]
    pub repair: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_parse_with_binary_suffixes() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("64K"), Ok(65536));
        assert_eq!(parse_size("64KiB"), Ok(65536));
        assert_eq!(parse_size("1g"), Ok(1 << 30));
        assert!(parse_size("12X").is_err());
        assert!(parse_size("M").is_err());
        assert!(parse_size("-1").is_err());
        assert!(parse_size("99999999999T").is_err());
    }
}
