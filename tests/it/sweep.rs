//! The sweep: nothing that fails for one webhook, one shard or the queue holds up the others.

use std::{collections::BTreeMap, time::Duration};

use nano_webhooks::dispatch::Dispatcher;
use serde_json::json;

use crate::support::{
    logs,
    proxy::{Fault, PartitionFault},
    sqs::{Sqs, SqsMode},
    stream::deadline,
    sweep_fixture::{Shards, SweepFixture},
};

const MINUTE: Duration = Duration::from_mins(1);

fn sweep_metrics(due: u32, lag: Duration, refused: u32) -> BTreeMap<String, f64> {
    BTreeMap::from([
        ("RetriesDue".to_owned(), f64::from(due)),
        ("SweepLag".to_owned(), lag.as_secs_f64() * 1_000.0),
        ("SweepRefused".to_owned(), f64::from(refused)),
    ])
}

/// The partitions of two webhooks refuse writes. All other deliveries move in the same sweep, and
/// those of the two webhooks move when their partitions accept writes again.
#[tokio::test]
async fn throttled_partitions_delay_no_other() {
    let fixture = SweepFixture::new().await;
    for hot in ["hot-1", "hot-2"] {
        fixture.add_due(hot, 150, Shards::All, 2 * MINUTE).await;
    }
    for other in ["acme", "globex", "initech"] {
        fixture.add_due(other, 30, Shards::All, MINUTE).await;
    }
    let hot = ["hot-1#1", "hot-2#1"];
    fixture
        .proxy
        .set_partition_fault(&hot, PartitionFault::Throttled);
    assert_eq!(fixture.sweep().await.unwrap(), 90);
    let messages = fixture.take_messages();
    for other in ["acme", "globex", "initech"] {
        assert_eq!(messages[other], 30, "{messages:?}");
    }
    assert_eq!(messages.len(), 3, "{messages:?}");
    assert_eq!(fixture.take_metrics(), sweep_metrics(90, 2 * MINUTE, 300));

    fixture
        .proxy
        .set_partition_fault(&[], PartitionFault::Throttled);
    assert_eq!(fixture.sweep().await.unwrap(), 300);
    assert_eq!(fixture.take_metrics(), sweep_metrics(300, 2 * MINUTE, 0));
}

/// Two webhooks have refused writes, and 300 others do not, each of an account of its own. One
/// sweep moves everything of the others, counts what was refused, and names both in the log.
#[tokio::test]
async fn throttled_partitions_are_named_among_many() {
    let fixture = SweepFixture::new().await;
    let others: Vec<_> = (0..300).map(|number| format!("other-{number}")).collect();
    fixture.add_due_to_each(&others, MINUTE).await;
    for hot in ["hot-1", "hot-2"] {
        fixture.add_due(hot, 40, Shards::All, 2 * MINUTE).await;
    }
    fixture
        .proxy
        .set_partition_fault(&["hot-1#1", "hot-2#1"], PartitionFault::Throttled);
    logs::capture();
    assert_eq!(fixture.sweep().await.unwrap(), others.len());
    let messages = fixture.take_messages();
    assert_eq!(messages.len(), others.len());
    for other in &others {
        assert_eq!(messages[other], 1, "{other}");
    }
    assert_eq!(fixture.take_metrics(), sweep_metrics(300, 2 * MINUTE, 80));
    let mut named = BTreeMap::new();
    for line in logs::captured("The table refused writes") {
        let account = line["account"].as_str().unwrap().to_owned();
        named.insert(account, (line["webhook"].clone(), line["refused"].clone()));
    }
    let expected = (json!("1"), json!(40));
    let expected = ["hot-1", "hot-2"].map(|hot| (hot.to_owned(), expected.clone()));
    assert_eq!(named, BTreeMap::from(expected));
}

/// A page lists only deliveries that have changed since. The cursor advances past it.
#[tokio::test]
async fn stale_page_does_not_end_sweep() {
    let fixture = SweepFixture::new().await;
    fixture
        .add_due("stale", 120, Shards::First, 2 * MINUTE)
        .await;
    fixture.add_due("acme", 1, Shards::First, MINUTE).await;
    fixture
        .proxy
        .set_partition_fault(&["stale#1"], PartitionFault::Changed);
    assert_eq!(fixture.sweep().await.unwrap(), 1);
    assert_eq!(fixture.take_messages()["acme"], 1);
    assert_eq!(fixture.take_metrics(), sweep_metrics(1, 2 * MINUTE, 0));
}

/// A shard that cannot be read fails the sweep, after the other shards are done.
#[tokio::test]
async fn unreadable_shard_delays_no_other() {
    let fixture = SweepFixture::new().await;
    fixture.add_due("acme", 160, Shards::All, MINUTE).await;
    fixture
        .proxy
        .arm_matching("Query", r#""00""#, 0, Fault::ServerError);
    assert!(fixture.sweep().await.is_err());
    assert_eq!(fixture.take_messages()["acme"], 150);
    assert_eq!(fixture.take_metrics(), sweep_metrics(150, MINUTE, 0));
}

/// A webhook with more due deliveries than wait at a time moves whole in one sweep.
#[tokio::test]
async fn large_backlog_moves_in_one_sweep() {
    let fixture = SweepFixture::new().await;
    fixture.add_due("acme", 2_100, Shards::First, MINUTE).await;
    assert_eq!(fixture.sweep().await.unwrap(), 2_100);
    assert_eq!(fixture.take_metrics(), sweep_metrics(2_100, MINUTE, 0));
}

/// SQS does not respond. The sweep ends by itself, and the next one sends everything.
#[tokio::test]
async fn hanging_queue_ends_sweep() {
    let fixture = SweepFixture::new().await;
    let sqs = Sqs::start(SqsMode::Hang).await;
    let dispatcher = Dispatcher {
        queue: sqs.queue(),
        ..fixture.dispatcher.clone()
    };
    fixture.add_due("acme", 700, Shards::All, MINUTE).await;
    let sweep = || dispatcher.sweep(deadline());
    assert_eq!(sweep().await.unwrap(), 0);
    assert_eq!(fixture.pending("acme").await, 700);
    sqs.set_mode(SqsMode::Accept);
    assert_eq!(sweep().await.unwrap(), 700);
    assert_eq!(sqs.message_count(), 700);
}

/// SQS rejects some messages of each request. The next sweep sends them.
#[tokio::test]
async fn rejected_messages_are_sent_by_next_sweep() {
    let fixture = SweepFixture::new().await;
    let sqs = Sqs::start(SqsMode::RejectHalf).await;
    let dispatcher = Dispatcher {
        queue: sqs.queue(),
        ..fixture.dispatcher.clone()
    };
    fixture.add_due("acme", 20, Shards::All, MINUTE).await;
    let sweep = || dispatcher.sweep(deadline());
    assert_eq!(sweep().await.unwrap(), 10);
    sqs.set_mode(SqsMode::Accept);
    assert_eq!(sweep().await.unwrap(), 10);
    assert_eq!(sweep().await.unwrap(), 0);
    assert_eq!(sqs.message_count(), 20);
}
