//! Polls the stream of the jobs table. In AWS, Lambda's event source mapping does this.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use anyhow::Context;
use aws_sdk_dynamodbstreams::types::Shard;
use nano_webhooks::error_chain::error_chain;
use tokio::{task::JoinSet, time::interval};

use super::shard_reader::{SHARD_END, ShardReader, StreamSource};

/// How often new shards are listed.
const LIST_SHARDS_INTERVAL: Duration = Duration::from_secs(10);

/// Reads every shard of a table's stream and passes batches to the dispatcher.
pub struct StreamPoller {
    pub source: StreamSource,
    /// For the ARN of the stream.
    pub dynamodb: aws_sdk_dynamodb::Client,
}

/// A shard that has unread records or may get some.
struct OpenShard {
    id: String,
    /// The sequence number of the last record that was processed.
    checkpoint: Option<String>,
}

impl StreamPoller {
    /// Reads the stream of a table until shutdown. Finishes batches that are being processed.
    pub async fn run(self, jobs_table: String) -> anyhow::Result<()> {
        let stream_arn = self.find_stream(&jobs_table).await?;
        let mut readers = JoinSet::new();
        let mut started_shards = HashSet::new();
        let mut list_shards = interval(LIST_SHARDS_INTERVAL);
        loop {
            // When a shard was read to its end, its children can be read.
            tokio::select! {
                () = self.source.shutdown.cancelled() => break,
                _ = list_shards.tick() => {}
                Some(_) = readers.join_next() => {}
            }
            let open_shards = match self.list_open_shards(&stream_arn).await {
                Ok(open_shards) => open_shards,
                Err(error) => {
                    let error = error_chain(error.as_ref());
                    tracing::warn!(error, "Could not list the shards of the jobs stream");
                    continue;
                }
            };
            for shard in open_shards {
                if started_shards.insert(shard.id.clone()) {
                    let reader = ShardReader {
                        source: self.source.clone(),
                        stream_arn: stream_arn.clone(),
                        shard_id: shard.id,
                        checkpoint: shard.checkpoint,
                        iterator: None,
                    };
                    readers.spawn(reader.run());
                }
            }
        }
        while readers.join_next().await.is_some() {}
        Ok(())
    }

    async fn find_stream(&self, table_name: &str) -> anyhow::Result<String> {
        let response = self
            .dynamodb
            .describe_table()
            .table_name(table_name)
            .send()
            .await?;
        response
            .table
            .and_then(|table| table.latest_stream_arn)
            .with_context(|| format!("table {table_name} has no stream"))
    }

    /// Lists the shards that are not read to their end and whose parents are.
    async fn list_open_shards(&self, stream_arn: &str) -> anyhow::Result<Vec<OpenShard>> {
        let shards = self.list_shards(stream_arn).await?;
        let mut checkpoints = HashMap::new();
        for shard_id in shards.iter().filter_map(Shard::shard_id) {
            let checkpoint = self
                .source
                .dispatcher
                .store
                .checkpoints()
                .get(stream_arn, shard_id)
                .await?;
            checkpoints.insert(shard_id, checkpoint);
        }
        let mut open_shards = Vec::new();
        for shard in &shards {
            let Some(id) = shard.shard_id() else { continue };
            if !is_finished(&checkpoints, id) && is_parent_finished(&checkpoints, shard) {
                open_shards.push(OpenShard {
                    id: id.to_owned(),
                    checkpoint: checkpoints[id].clone(),
                });
            }
        }
        Ok(open_shards)
    }

    async fn list_shards(&self, stream_arn: &str) -> anyhow::Result<Vec<Shard>> {
        let mut shards = Vec::new();
        let mut last_shard_id = None;
        loop {
            let response = self
                .source
                .streams
                .describe_stream()
                .stream_arn(stream_arn)
                .set_exclusive_start_shard_id(last_shard_id)
                .send()
                .await?;
            let stream = response
                .stream_description
                .context("DescribeStream returned no description")?;
            shards.extend(stream.shards.unwrap_or_default());
            last_shard_id = stream.last_evaluated_shard_id;
            if last_shard_id.is_none() {
                return Ok(shards);
            }
        }
    }
}

fn is_finished(checkpoints: &HashMap<&str, Option<String>>, shard_id: &str) -> bool {
    matches!(checkpoints.get(shard_id), Some(Some(checkpoint)) if checkpoint == SHARD_END)
}

/// DynamoDB no longer lists a parent whose records it has trimmed. Such a parent counts as
/// finished.
fn is_parent_finished(checkpoints: &HashMap<&str, Option<String>>, shard: &Shard) -> bool {
    match shard.parent_shard_id() {
        None => true,
        Some(parent) => !checkpoints.contains_key(parent) || is_finished(checkpoints, parent),
    }
}
