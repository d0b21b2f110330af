//! The peer of `clovis bench stob`: groups of 16 puts into a redb table, each group durable before the next begins.
//! `cargo run --release --bin redb_puts -- FILE MILLISECONDS VALUE_BYTES` prints puts and nanoseconds.
#![forbid(unsafe_code)]

use redb::{Database, Durability, TableDefinition};
use runtime::MonotonicClock;

const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("puts");
const GROUP: u64 = 16;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().ok_or("the first argument is the file")?;
    let milliseconds: u64 = arguments.next().ok_or("the second is the time")?.parse()?;
    let value_bytes: usize = arguments.next().ok_or("the third is the bytes of a value")?.parse()?;
    let database = Database::create(file)?;
    let mut random = fastrand::Rng::with_seed(1);
    let value = vec![7; value_bytes];
    let clock = MonotonicClock::start();
    let (began, mut puts) = (clock.now(), 0);
    while clock.now() - began < std::time::Duration::from_millis(milliseconds) {
        let mut transaction = database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        {
            let mut table = transaction.open_table(TABLE)?;
            for _ in 0..GROUP {
                let key = random.u64(0..1 << 15).to_be_bytes();
                table.insert(&key[..], &value[..])?;
            }
        }
        transaction.commit()?;
        puts += GROUP;
    }
    println!("{puts} {}", (clock.now() - began).as_nanos());
    Ok(())
}
