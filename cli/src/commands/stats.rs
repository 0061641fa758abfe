//! `stats`: what the tables contain, counted in indexes and small partitions. It scans no table.

mod account;
mod count;
mod global;

use crate::args::StatsArgs;

pub async fn run(args: StatsArgs) -> anyhow::Result<()> {
    match args.account {
        None => global::print(&args.tables, args.json).await,
        Some(account) => account::print(&account, &args.tables, args.json).await,
    }
}
