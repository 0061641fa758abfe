"""Checks the properties of template.yaml that the code relies on.

`ci/template-values.json` has the values of the code, which `cargo test --test it template_values`
verifies. `ci/permissions.json` has the permissions of each function's code, which the integration
tests enforce for DynamoDB.
"""

import itertools
import json
import re
import tomllib
import unittest
from pathlib import Path

from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator
from samtranslator.yaml_helper import yaml_parse

ROOT = Path(__file__).parent.parent
VALUES = json.loads((ROOT / "ci/template-values.json").read_text())
NUMBERS = VALUES["numbers"]
PERMISSIONS = json.loads((ROOT / "ci/permissions.json").read_text())
TABLES = {"Webhooks", "Deliveries", "Jobs"}
BINARIES = {"ApiFunction": "api", "DispatchFunction": "dispatch", "RetryFunction": "dispatch"}
ROLES = {"ApiRole", "DispatchRole", "RetryRole"}
# Settings that a function's code reads and does not use.
UNUSED_SETTINGS = {
    "ApiFunction": {"DISABLE_AFTER", "LATE_ATTEMPTS", "RETRY_SCHEDULE", "STACK_NAME"},
    "DispatchFunction": {
        "ACCOUNT_CLAIM",
        "API_CONCURRENCY",
        "RATE_LIMIT_PER_DAY",
        "RATE_LIMIT_PER_MINUTE",
        "WEBHOOKS_PER_ACCOUNT",
    },
}
UNUSED_SETTINGS["RetryFunction"] = UNUSED_SETTINGS["DispatchFunction"]
# The event source mapping of a queue requires these actions.
RECEIVE = {"sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"}
# Lambda requires these actions to connect a function to a VPC.
NETWORK = {
    "ec2:CreateNetworkInterface",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSubnets",
    "ec2:DeleteNetworkInterface",
    "ec2:AssignPrivateIpAddresses",
    "ec2:UnassignPrivateIpAddresses",
}
# The resource type, and the attribute if any, that the value of a dimension refers to.
DIMENSION_VALUES = {
    "FunctionName": ("AWS::Lambda::Function", None),
    "EventSourceMappingUUID": ("AWS::Lambda::EventSourceMapping", None),
    "QueueName": ("AWS::SQS::Queue", "QueueName"),
    "TableName": ("AWS::DynamoDB::Table", None),
    "ApiId": ("AWS::ApiGatewayV2::Api", None),
}
# Values of each optional parameter that lead to different templates.
PARAMETERS = {
    "JobsStreamArn": [
        "",
        "arn:aws:dynamodb:eu-west-1:123456789012:table/jobs/stream/2026-01-01T00:00:00.000",
    ],
    "SecretsKmsKey": [
        "",
        "none",
        "arn:aws:kms:eu-west-1:123456789012:key/00000000-0000-0000-0000-000000000000",
    ],
    "ExtraCaLayer": ["", "arn:aws:lambda:eu-west-1:123456789012:layer:ca:1"],
    "CertificateArn": [
        "",
        "arn:aws:acm:eu-west-1:123456789012:certificate/00000000-0000-0000-0000-000000000000",
    ],
    "VpcSubnetIds": ["", "subnet-0a,subnet-0b"],
    "AlarmTopic": ["", "arn:aws:sns:eu-west-1:123456789012:night"],
    "NotifyTopicArn": ["", "arn:aws:sns:eu-west-1:123456789012:customers"],
    "ReserveRetryConcurrency": ["no", "yes"],
    "DispatchReservedConcurrency": [0, 100],
    "ApiReservedConcurrency": [0, 50],
    "TableMaxReadUnits": [0, 4000],
    "TableMaxWriteUnits": [0, 2000],
}
# Parameters that another parameter requires.
REQUIRED_WITH = {
    "CertificateArn": {"DomainName": "webhooks.example.com"},
    "VpcSubnetIds": {"VpcSecurityGroupIds": "sg-0c"},
}


def only(values):
    """Returns the only value."""
    (value,) = values
    return value


# The sets of dimensions of each metric, from the code and from AWS's documentation of each service.
# An alarm or a graph with another metric or set of dimensions has no data.
METRICS = {
    "NanoWebhooks": {
        name: [set(dimensions) for dimensions in sets] for name, sets in VALUES["metrics"].items()
    },
    "NanoWebhooks/AWS::StackName": {"ErrorLines": [set()]},
    "AWS/Lambda": {
        **{
            name: [{"FunctionName"}]
            for name in ("Errors", "Throttles", "Duration", "ConcurrentExecutions", "IteratorAge")
        },
        **{
            name: [{"EventSourceMappingUUID"}]
            for name in (
                "PolledEventCount",
                "DroppedEventCount",
                "OnFailureDestinationDeliveredEventCount",
            )
        },
        "ClaimedAccountConcurrency": [set()],
    },
    "AWS/SQS": {
        name: [{"QueueName"}]
        for name in (
            "ApproximateAgeOfOldestMessage",
            "ApproximateAgeOfOldestMessageInQuietGroups",
            "ApproximateNumberOfMessagesVisible",
            "ApproximateNumberOfMessagesNotVisible",
            "ApproximateNumberOfMessagesDelayed",
            "ApproximateNumberOfNoisyGroups",
        )
    },
    "AWS/DynamoDB": {
        name: [{"TableName"}, {"TableName", "GlobalSecondaryIndexName"}]
        for name in (
            "ReadThrottleEvents",
            "WriteThrottleEvents",
            "ConsumedReadCapacityUnits",
            "ConsumedWriteCapacityUnits",
        )
    },
    "AWS/ApiGateway": {name: [{"ApiId"}] for name in ("Count", "4xx", "5xx", "Latency")},
}


def to_list(value):
    return value if isinstance(value, list) else [value]


def translate():
    """Returns the template after SAM's transform."""
    template = yaml_parse((ROOT / "template.yaml").read_text())
    for resource in template["Resources"].values():
        # `sam build` sets the location of the artifact.
        if resource["Type"] == "AWS::Serverless::Function":
            resource["Properties"]["CodeUri"] = "s3://bucket/key"
    template["Globals"]["Function"].pop("CodeUri")
    parameters = {name: value["Default"] for name, value in template["Parameters"].items()}
    return Translator({}, Parser()).translate(template, parameters)


class Deployment:
    """The transformed template with parameters applied and conditions resolved."""

    def __init__(self, template, **parameters):
        self.parameters = {
            name: parameter["Default"] for name, parameter in template["Parameters"].items()
        } | parameters
        lists = {
            name
            for name, parameter in template["Parameters"].items()
            if parameter["Type"] == "CommaDelimitedList"
        }
        self.parameters |= {name: self.parameters[name].split(",") for name in lists}
        self.conditions = template["Conditions"]
        self.resources = self.select(template["Resources"])
        self.outputs = self.select(template["Outputs"])

    def select(self, entries):
        """Returns the resources or outputs whose condition is true, with resolved conditions."""
        return {
            name: self.resolve(entry)
            for name, entry in entries.items()
            if "Condition" not in entry or self.is_true({"Condition": entry["Condition"]})
        }

    def is_true(self, condition):
        ((function, operands),) = condition.items()
        match function.removeprefix("Fn::"):
            case "Condition":
                return self.is_true(self.conditions[operands])
            case "Not":
                return not self.is_true(operands[0])
            case "And":
                return all(self.is_true(operand) for operand in operands)
            case "Or":
                return any(self.is_true(operand) for operand in operands)
            case "Equals":
                return str(self.value(operands[0])) == str(self.value(operands[1]))
            case "EachMemberEquals":
                return all(member == operands[1] for member in self.value(operands[0]))
        raise AssertionError(f"unsupported condition function {function}")

    def value(self, operand):
        if isinstance(operand, dict) and "Ref" in operand:
            return self.parameters[operand["Ref"]]
        if isinstance(operand, dict) and "Fn::Join" in operand:
            return operand["Fn::Join"][0].join(self.value(operand["Fn::Join"][1]))
        return operand

    def resolve(self, value):
        """Replaces each `Fn::If` with its branch, and removes `AWS::NoValue`."""
        if isinstance(value, list):
            return [part for part in map(self.resolve, value) if part != {"Ref": "AWS::NoValue"}]
        if not isinstance(value, dict):
            return value
        if set(value) == {"Fn::If"}:
            condition, then, otherwise = value["Fn::If"]
            return self.resolve(then if self.is_true({"Condition": condition}) else otherwise)
        resolved = {key: self.resolve(part) for key, part in value.items()}
        return {key: part for key, part in resolved.items() if part != {"Ref": "AWS::NoValue"}}

    def references(self, value):
        """Returns the names that a value refers to."""
        if isinstance(value, list):
            return set().union(*map(self.references, value))
        if not isinstance(value, dict):
            return set()
        if set(value) == {"Ref"}:
            return {value["Ref"]}
        if set(value) == {"Fn::GetAtt"}:
            return {value["Fn::GetAtt"][0]}
        if set(value) == {"Fn::Sub"}:
            text, variables = (
                value["Fn::Sub"] if isinstance(value["Fn::Sub"], list) else (value["Fn::Sub"], {})
            )
            names = {name.split(".")[0] for name in re.findall(r"\$\{([\w.:]+)\}", text)}
            return names - set(variables) | self.references(variables)
        return set().union(*map(self.references, value.values()))


def name_references(value):
    """Replaces a reference with the name that it refers to."""
    if isinstance(value, dict) and set(value) == {"Ref"}:
        return value["Ref"]
    if isinstance(value, dict) and set(value) == {"Fn::GetAtt"}:
        return ".".join(value["Fn::GetAtt"])
    if isinstance(value, dict) and set(value) == {"Fn::Sub"}:
        text, variables = (
            value["Fn::Sub"] if isinstance(value["Fn::Sub"], list) else (value["Fn::Sub"], {})
        )
        return re.sub(
            r"\$\{([\w.:]+)\}",
            lambda match: name_references(variables.get(match[1], match[1])),
            text,
        )
    return value


def expand_metrics(rows):
    """Returns the metrics of a graph as (namespace, name, dimensions), without CloudWatch's
    abbreviations.
    """
    previous, metrics = [], []
    for row in rows:
        fields = [field for field in row if not isinstance(field, dict)]
        # A row without fields is an expression over other metrics.
        if not fields:
            continue
        if fields[0] == "...":
            fields = previous[: len(previous) - len(fields) + 1] + fields[1:]
        previous = [
            previous[index] if field == "." else field for index, field in enumerate(fields)
        ]
        metrics.append((previous[0], previous[1], dict(zip(previous[2::2], previous[3::2]))))
    return metrics


class Template(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.template = yaml_parse((ROOT / "template.yaml").read_text())
        cls.translated = translate()
        cls.resources = cls.translated["Resources"]

    def deployed(self, **parameters):
        return Deployment(self.translated, **parameters)

    def of_type(self, kind):
        matches = {
            name: resource for name, resource in self.resources.items() if resource["Type"] == kind
        }
        self.assertTrue(matches, kind)
        return matches

    def mapping(self, function="DispatchFunction"):
        mappings = [
            resource["Properties"]
            for resource in self.of_type("AWS::Lambda::EventSourceMapping").values()
        ]
        return only(mapping for mapping in mappings if mapping["FunctionName"] == {"Ref": function})

    def properties(self, name):
        return self.resources[name]["Properties"]

    def statements(self, role):
        for policy in self.properties(role)["Policies"]:
            for statement in policy["PolicyDocument"]["Statement"]:
                # The other branch of a conditional statement is `AWS::NoValue`.
                yield statement["Fn::If"][1] if "Fn::If" in statement else statement

    def granted(self, role):
        """Returns the role's permissions in the form of ci/permissions.json."""
        permissions = {}
        for statement in self.statements(role):
            resource = name_references(statement["Resource"])
            # The key is either created or given.
            if statement["Sid"] == "SecretsKey":
                resource = "SecretsKey"
            if not isinstance(resource, str) or resource == "*":
                continue
            resource = resource.removesuffix(".Arn").replace(".Arn/", "/")
            condition = statement.get("Condition", {}).get("ForAllValues:StringLike", {})
            for action in to_list(statement["Action"]):
                partitions = permissions.setdefault(resource, {}).setdefault(action, set())
                partitions.update(condition.get("dynamodb:LeadingKeys", ["*"]))
        return permissions

    def actions(self, role, resource):
        return set(self.granted(role).get(resource, {}))

    # --- Stream

    def test_filter_matches_terminal_statuses(self):
        """The stream filter matches every record with a terminal new status, and has no other
        condition.
        """
        pattern = only(self.mapping()["FilterCriteria"]["Filters"])["Pattern"]
        self.assertEqual(
            json.loads(pattern),
            {"dynamodb": {"NewImage": {"status": {"S": VALUES["job_statuses"]}}}},
        )

    def test_stream_starts_at_trim_horizon(self):
        """The mapping reads the stream from its oldest record."""
        self.assertEqual(self.mapping()["StartingPosition"], "TRIM_HORIZON")

    def test_stream_reports_item_failures(self):
        """Lambda retries only the failed records of a batch, and splits a batch if the function
        fails.
        """
        self.assertEqual(self.mapping()["FunctionResponseTypes"], ["ReportBatchItemFailures"])
        self.assertIs(self.mapping()["BisectBatchOnFunctionError"], True)

    def test_stream_retries_are_limited(self):
        """Lambda discards a batch after 6 to 12 hours of the 24 hours that the stream keeps
        records.
        """
        self.assertTrue(1000 <= self.mapping()["MaximumRetryAttempts"] <= 10_000)
        hour = 60 * 60
        self.assertTrue(6 * hour <= self.mapping()["MaximumRecordAgeInSeconds"] <= 12 * hour)

    def test_discarded_batches_go_to_bucket(self):
        """Discarded batches are stored in a private, encrypted bucket for at least 30 days."""
        destination = self.mapping()["DestinationConfig"]["OnFailure"]["Destination"]
        self.assertEqual(destination, {"Fn::GetAtt": ["DiscardedBatches", "Arn"]})
        bucket = self.resources["DiscardedBatches"]
        self.assertEqual(bucket["Type"], "AWS::S3::Bucket")
        self.assertEqual(
            (bucket["DeletionPolicy"], bucket["UpdateReplacePolicy"]), ("Retain", "Retain")
        )
        properties = bucket["Properties"]
        self.assertEqual(set(properties["PublicAccessBlockConfiguration"].values()), {True})
        self.assertEqual(len(properties["PublicAccessBlockConfiguration"]), 4)
        self.assertEqual(
            only(properties["OwnershipControls"]["Rules"]),
            {"ObjectOwnership": "BucketOwnerEnforced"},
        )
        self.assertTrue(properties["BucketEncryption"]["ServerSideEncryptionConfiguration"])
        rule = only(properties["LifecycleConfiguration"]["Rules"])
        self.assertEqual(rule["Status"], "Enabled")
        self.assertGreaterEqual(rule["ExpirationInDays"], 30)

    def test_only_dispatch_writes_to_bucket(self):
        """Only the dispatch role can write discarded batches, and only to a bucket of this account.
        """
        for role in ROLES:
            statements = [
                s for s in self.statements(role) if "DiscardedBatches" in json.dumps(s["Resource"])
            ]
            granted = {action: s["Resource"] for s in statements for action in to_list(s["Action"])}
            objects = {
                "s3:PutObject": {"Fn::Sub": "${DiscardedBatches.Arn}/aws/lambda/*"},
                "s3:ListBucket": {"Fn::GetAtt": ["DiscardedBatches", "Arn"]},
            }
            self.assertEqual(granted, objects if role == "DispatchRole" else {}, role)
            for statement in statements:
                self.assertEqual(
                    statement["Condition"],
                    {"StringEquals": {"s3:ResourceAccount": {"Ref": "AWS::AccountId"}}},
                )

    def test_stream_reports_event_counts(self):
        """The mapping reports the metrics that the alarms use."""
        self.assertEqual(self.mapping()["MetricsConfig"], {"Metrics": ["EventCount"]})

    def test_batches_match_local_mode(self):
        """Batch size and time are those of local mode."""
        self.assertEqual(self.mapping()["BatchSize"], NUMBERS["local_batch_size"])
        timeout = self.properties("DispatchFunction")["Timeout"]
        self.assertEqual(
            timeout, NUMBERS["local_batch_seconds"] + NUMBERS["recording_reserve_seconds"]
        )

    def test_limits_page_has_numbers(self):
        """docs/LIMITS.md derives limits of the deployment from these numbers."""
        page = (ROOT / "docs/LIMITS.md").read_text()
        stream, retries = self.mapping(), self.mapping("RetryFunction")
        parameters = self.template["Parameters"]
        for row in [
            f"{stream['ParallelizationFactor']} per shard of the jobs stream",
            f"stream batches of up to {stream['BatchSize']} records",
            f"queue batches of up to {retries['BatchSize']} messages",
            f"`RetryConcurrency`: {parameters['RetryConcurrency']['Default']} by default",
            f"`AccountConcurrency`: {parameters['AccountConcurrency']['Default']} in a new account",
        ]:
            self.assertIn(row, page)

    def test_stream_is_created_or_given(self):
        """The mapping and the role use the stream of the created table or of the parameter."""
        stream = {
            "Fn::If": [
                "CreateJobs",
                {"Fn::GetAtt": ["Jobs", "StreamArn"]},
                {"Ref": "JobsStreamArn"},
            ]
        }
        self.assertEqual(self.mapping()["EventSourceArn"], stream)
        granted = only(s for s in self.statements("DispatchRole") if s["Resource"] == stream)
        expected = {"DescribeStream", "GetRecords", "GetShardIterator", "ListStreams"}
        self.assertEqual(set(granted["Action"]), {f"dynamodb:{action}" for action in expected})

    # --- Retry queue

    def test_retry_queue_reports_item_failures(self):
        """The retry function reads the retry queue without a batching window and returns only
        failed messages.
        """
        mapping = self.mapping("RetryFunction")
        self.assertEqual(mapping["EventSourceArn"], {"Fn::GetAtt": ["RetryQueue", "Arn"]})
        self.assertEqual(mapping["FunctionResponseTypes"], ["ReportBatchItemFailures"])
        # The function attempts all deliveries of a batch concurrently.
        self.assertTrue(1 <= mapping["BatchSize"] <= min(10, NUMBERS["concurrent_messages"]))
        self.assertNotIn("MaximumBatchingWindowInSeconds", mapping)

    def test_retry_concurrency_is_parameter(self):
        """A parameter limits the concurrency of the retry mapping."""
        self.assertEqual(
            self.mapping("RetryFunction")["ScalingConfig"],
            {"MaximumConcurrency": {"Ref": "RetryConcurrency"}},
        )
        parameter = self.template["Parameters"]["RetryConcurrency"]
        self.assertEqual(
            (parameter["Type"], parameter["MinValue"], parameter["MaxValue"]), ("Number", 2, 1000)
        )

    def test_reserved_concurrency_follows_parameters(self):
        """Each parameter reserves concurrency for one function. The retry function reserves the
        mapping's maximum.
        """

        def reserved(**parameters):
            resources = self.deployed(**parameters).resources
            return {
                name: resources[name]["Properties"].get("ReservedConcurrentExecutions")
                for name in BINARIES
            }

        none = dict.fromkeys(BINARIES)
        self.assertEqual(reserved(), none)
        self.assertEqual(
            reserved(ApiReservedConcurrency=5),
            none | {"ApiFunction": {"Ref": "ApiReservedConcurrency"}},
        )
        self.assertEqual(
            reserved(DispatchReservedConcurrency=5),
            none | {"DispatchFunction": {"Ref": "DispatchReservedConcurrency"}},
        )
        self.assertEqual(
            reserved(ReserveRetryConcurrency="yes"),
            none | {"RetryFunction": {"Ref": "RetryConcurrency"}},
        )

    def test_timeouts_exceed_lease(self):
        """The retry function's time-out exceeds a lease, and the visibility time-out is six
        function time-outs.
        """
        timeout = self.properties("RetryFunction")["Timeout"]
        self.assertGreater(timeout, NUMBERS["lease_seconds"])
        self.assertGreaterEqual(self.properties("RetryQueue")["VisibilityTimeout"], 6 * timeout)

    def test_message_retention_fits_redrive(self):
        """Messages live long enough for every receive, and at most twice as long."""
        queue = self.properties("RetryQueue")
        redrive = queue["RedrivePolicy"]
        self.assertTrue(5 <= redrive["maxReceiveCount"] <= 10)
        needed = (
            NUMBERS["max_queue_delay_seconds"]
            + redrive["maxReceiveCount"] * queue["VisibilityTimeout"]
        )
        self.assertTrue(needed <= queue["MessageRetentionPeriod"] <= 2 * needed)
        self.assertEqual(
            redrive["deadLetterTargetArn"], {"Fn::GetAtt": ["RetryDeadLetters", "Arn"]}
        )
        # A message keeps its age in the dead-letter queue.
        self.assertEqual(
            self.properties("RetryDeadLetters")["MessageRetentionPeriod"], 14 * 24 * 60 * 60
        )

    def test_dead_letters_accept_retry_queue(self):
        """The dead-letter queue accepts messages only from the retry queue of the stack."""
        allow = self.properties("RetryDeadLetters")["RedriveAllowPolicy"]
        self.assertEqual(allow["redrivePermission"], "byQueue")
        name = self.properties("RetryQueue")["QueueName"]["Fn::Sub"]
        arn = "arn:${AWS::Partition}:sqs:${AWS::Region}:${AWS::AccountId}:" + name
        self.assertEqual(allow["sourceQueueArns"], [{"Fn::Sub": arn}])
        # Two stacks in an account need different queue names.
        self.assertIn("${AWS::StackName}", name)

    def test_queues_are_encrypted_standard_queues(self):
        """Every queue is encrypted, and none is a FIFO queue."""
        for name, queue in self.of_type("AWS::SQS::Queue").items():
            self.assertIs(queue["Properties"]["SqsManagedSseEnabled"], True, name)
            self.assertNotIn("FifoQueue", queue["Properties"], name)

    def test_only_retry_allows_recursion(self):
        """Only the retry function can send messages to its own queue."""
        allowed = {
            name
            for name, f in self.of_type("AWS::Lambda::Function").items()
            if f["Properties"].get("RecursiveLoop") == "Allow"
        }
        self.assertEqual(allowed, {"RetryFunction"})

    # --- Schedule

    def test_schedules_match_local_mode(self):
        """A rule for each scheduled job invokes the dispatch function every minute."""
        self.assertEqual(NUMBERS["local_schedule_interval_seconds"], 60)
        inputs = []
        for rule in self.of_type("AWS::Events::Rule").values():
            self.assertEqual(rule["Properties"]["ScheduleExpression"], "rate(1 minute)")
            self.assertNotEqual(rule["Properties"].get("State"), "DISABLED")
            target = only(rule["Properties"]["Targets"])
            self.assertEqual(target["Arn"], {"Fn::GetAtt": ["DispatchFunction", "Arn"]})
            inputs.append(json.loads(target["Input"]))
        samples = [json.loads(f.read_text()) for f in (ROOT / "events").glob("schedule-*.json")]
        self.assertCountEqual(inputs, samples)

    def test_failed_scheduled_job_is_not_retried(self):
        """Lambda does not retry a scheduled job, and it ends before the next run."""
        config = only(self.of_type("AWS::Lambda::EventInvokeConfig").values())["Properties"]
        self.assertEqual(config["FunctionName"], {"Ref": "DispatchFunction"})
        self.assertEqual(
            (config["MaximumRetryAttempts"], config["MaximumEventAgeInSeconds"]), (0, 60)
        )
        self.assertLess(
            self.properties("DispatchFunction")["Timeout"], NUMBERS["local_schedule_interval_seconds"]
        )

    # --- Tables

    def test_tables_are_protected(self):
        """Every table is retained, encrypted, recoverable and on-demand."""
        tables = self.of_type("AWS::DynamoDB::Table")
        self.assertEqual(set(tables), TABLES)
        for name, table in tables.items():
            with self.subTest(name):
                self.assertEqual(table["DeletionPolicy"], "Retain")
                self.assertEqual(table["UpdateReplacePolicy"], "Retain")
                properties = table["Properties"]
                self.assertIs(properties["SSESpecification"]["SSEEnabled"], True)
                self.assertIs(
                    properties["PointInTimeRecoverySpecification"]["PointInTimeRecoveryEnabled"],
                    True,
                )
                self.assertEqual(properties["BillingMode"], "PAY_PER_REQUEST")

    def test_throughput_limits_apply_to_own_tables(self):
        """The maximum throughput applies to both own tables and their indexes, and not to the jobs
        table.
        """

        def limits(**parameters):
            resources = self.deployed(**parameters).resources
            tables = {name: resources[name]["Properties"] for name in TABLES}
            indexes = {i["IndexName"]: i for i in tables["Deliveries"]["GlobalSecondaryIndexes"]}
            return {
                name: owner.get("OnDemandThroughput") for name, owner in (tables | indexes).items()
            }

        own = ("Webhooks", "Deliveries", "due", "by_state")
        reads, writes = (
            {"MaxReadRequestUnits": {"Ref": "TableMaxReadUnits"}},
            {"MaxWriteRequestUnits": {"Ref": "TableMaxWriteUnits"}},
        )
        self.assertEqual(limits(), dict.fromkeys((*own, "Jobs")))
        self.assertEqual(limits(TableMaxReadUnits=9), dict.fromkeys(own, reads) | {"Jobs": None})
        self.assertEqual(limits(TableMaxWriteUnits=9), dict.fromkeys(own, writes) | {"Jobs": None})
        self.assertEqual(
            limits(TableMaxReadUnits=9, TableMaxWriteUnits=9),
            dict.fromkeys(own, reads | writes) | {"Jobs": None},
        )

    def test_tables_match_local_mode(self):
        """The tables have the keys, indexes, TTL and stream of the tables that local mode creates.
        """

        def keys(owner):
            return [[key["AttributeName"], key["KeyType"]] for key in owner["KeySchema"]]

        def describe(table):
            description = {
                "attributes": {
                    d["AttributeName"]: d["AttributeType"] for d in table["AttributeDefinitions"]
                },
                "indexes": {
                    index["IndexName"]: {
                        "keys": keys(index),
                        "projected": sorted(index["Projection"]["NonKeyAttributes"]),
                        "projection": index["Projection"]["ProjectionType"],
                    }
                    for index in table.get("GlobalSecondaryIndexes", [])
                },
                "keys": keys(table),
                "stream": table.get("StreamSpecification", {}).get("StreamViewType"),
            }
            if "TimeToLiveSpecification" in table:
                self.assertIs(table["TimeToLiveSpecification"]["Enabled"], True)
                description["ttl"] = table["TimeToLiveSpecification"]["AttributeName"]
            return description

        self.assertEqual(
            {name: describe(self.properties(name)) for name in TABLES}, VALUES["tables"]
        )

    # --- Functions

    def test_functions_have_their_settings(self):
        """Each function has the environment variables that its code uses, and no others."""
        for name in BINARIES:
            variables = set(self.properties(name)["Environment"]["Variables"])
            self.assertEqual(variables, set(VALUES["environment"]) - UNUSED_SETTINGS[name], name)

    def test_dispatch_and_retry_share_settings(self):
        """The dispatch and retry functions have the same environment, except that only the
        dispatch function has late attempts.
        """
        settings = {name: self.properties(name)["Environment"]["Variables"] for name in BINARIES}
        retry = settings["RetryFunction"]
        self.assertEqual(retry["LATE_ATTEMPTS"], "off")
        late_attempts = {"LATE_ATTEMPTS": {"Ref": "LateAttempts"}}
        self.assertEqual(settings["DispatchFunction"], retry | late_attempts)
        for variables in settings.values():
            self.assertEqual(variables["RETRY_QUEUE_URL"], {"Ref": "RetryQueue"})

    def test_functions_run_their_binaries(self):
        """`sam build` builds one binary of the functions' package for each function."""
        manifest = tomllib.loads((ROOT / "Cargo.toml").read_text())
        self.assertEqual(set(BINARIES), set(self.of_type("AWS::Lambda::Function")))
        for name, binary in BINARIES.items():
            metadata = self.template["Resources"][name]["Metadata"]
            self.assertEqual(
                metadata, {"BuildMethod": "rust-cargolambda", "BuildProperties": {"Binary": binary}}
            )
            self.assertIn(binary, [target["name"] for target in manifest["bin"]])
            self.assertEqual(self.properties(name)["Runtime"], "provided.al2023")
        # SAM has no property for the package. Without it, Cargo would enable the features that the
        # CLI needs.
        options = tomllib.loads((ROOT / "CargoLambda.toml").read_text())
        self.assertEqual(options, {"build": {"packages": [manifest["package"]["name"]]}})

    def test_architecture_is_parameter(self):
        """The parameter Architecture applies to every function."""
        for name, function in self.of_type("AWS::Lambda::Function").items():
            self.assertEqual(
                function["Properties"]["Architectures"], [{"Ref": "Architecture"}], name
            )

    def test_api_routes_every_request(self):
        """The API has one route for every path and method, and a stage without a prefix."""
        body = only(self.of_type("AWS::ApiGatewayV2::Api").values())["Properties"]["Body"]
        self.assertEqual(list(body["paths"]), ["$default"])
        self.assertEqual(list(body["paths"]["$default"]), ["x-amazon-apigateway-any-method"])
        integration = body["paths"]["$default"]["x-amazon-apigateway-any-method"][
            "x-amazon-apigateway-integration"
        ]
        self.assertEqual(integration["payloadFormatVersion"], "2.0")
        self.assertEqual(
            only(self.of_type("AWS::ApiGatewayV2::Stage").values())["Properties"]["StageName"],
            "$default",
        )

    def test_log_groups_have_retention(self):
        """Each function writes to its own log group, and every log group has the retention of the
        parameter.
        """
        groups = self.of_type("AWS::Logs::LogGroup")
        self.assertEqual(len(groups), len(BINARIES) + 1)
        for name, group in groups.items():
            self.assertEqual(
                group["Properties"]["RetentionInDays"], {"Ref": "LogRetentionDays"}, name
            )
        for name, function in self.of_type("AWS::Lambda::Function").items():
            properties = function["Properties"]
            group = properties["LoggingConfig"]["LogGroup"]["Ref"]
            self.assertIn(group, groups)
            role, _ = properties["Role"]["Fn::GetAtt"]
            self.assertEqual(
                self.actions(role, group), {"logs:CreateLogStream", "logs:PutLogEvents"}, name
            )
        stage = only(self.of_type("AWS::ApiGatewayV2::Stage").values())["Properties"]
        self.assertEqual(
            stage["AccessLogSettings"]["DestinationArn"], {"Fn::GetAtt": ["AccessLogs", "Arn"]}
        )

    def test_metric_lines_are_logged(self):
        """The log level lets the lines with metrics pass."""
        for name, function in self.of_type("AWS::Lambda::Function").items():
            logging = function["Properties"]["LoggingConfig"]
            self.assertEqual(
                (logging["LogFormat"], logging["ApplicationLogLevel"]), ("JSON", "INFO"), name
            )

    def test_metrics_name_stack(self):
        """The functions get the stack name, which the alarms and the dashboard use as a dimension.
        """
        for name in ("DispatchFunction", "RetryFunction"):
            self.assertEqual(
                self.properties(name)["Environment"]["Variables"]["STACK_NAME"],
                {"Ref": "AWS::StackName"},
                name,
            )

    # --- Network

    def test_functions_run_in_vpc(self):
        """Every function is in the VPC of the parameters, if any."""
        inside = self.deployed(VpcSubnetIds="subnet-0a", VpcSecurityGroupIds="sg-0c")
        for name in BINARIES:
            self.assertNotIn("VpcConfig", self.deployed().resources[name]["Properties"])
            expected = {
                "SubnetIds": {"Ref": "VpcSubnetIds"},
                "SecurityGroupIds": {"Ref": "VpcSecurityGroupIds"},
            }
            self.assertEqual(inside.resources[name]["Properties"]["VpcConfig"], expected, name)

    def test_code_has_no_network_permissions(self):
        """Lambda can connect the functions to the VPC, and their code cannot use these permissions.
        """
        inside = self.deployed(VpcSubnetIds="subnet-0a", VpcSecurityGroupIds="sg-0c")
        for role in ROLES:
            self.assertNotIn("ec2:", json.dumps(self.deployed().resources[role]), role)
            statements = inside.resources[role]["Properties"]["Policies"][0]["PolicyDocument"][
                "Statement"
            ]
            allow, deny = [s for s in statements if "ec2:" in json.dumps(s["Action"])]
            self.assertEqual((allow["Effect"], set(allow["Action"])), ("Allow", NETWORK), role)
            self.assertEqual((deny["Effect"], deny["Action"]), ("Deny", "ec2:*"), role)
            self.assertEqual(
                deny["Condition"], {"Null": {"lambda:SourceFunctionArn": "false"}}, role
            )

    def test_custom_domain_replaces_default(self):
        """A custom domain name disables the default endpoint and appears in the outputs."""
        self.assertFalse({"ApiDomain", "ApiDomainMapping"} & set(self.deployed().resources))
        own = self.deployed(
            DomainName="webhooks.example.com", CertificateArn=PARAMETERS["CertificateArn"][1]
        )
        configuration = only(own.resources["ApiDomain"]["Properties"]["DomainNameConfigurations"])
        self.assertEqual(
            configuration,
            {
                "CertificateArn": {"Ref": "CertificateArn"},
                "EndpointType": "REGIONAL",
                "SecurityPolicy": "TLS_1_2",
            },
        )
        mapping = own.resources["ApiDomainMapping"]["Properties"]
        stage = only(
            name for name, r in own.resources.items() if r["Type"] == "AWS::ApiGatewayV2::Stage"
        )
        self.assertEqual(
            mapping,
            {"ApiId": {"Ref": "Api"}, "DomainName": {"Ref": "ApiDomain"}, "Stage": {"Ref": stage}},
        )
        for deployment, disabled in ((self.deployed(), False), (own, True)):
            server = only(deployment.resources["Api"]["Properties"]["Body"]["servers"])
            self.assertEqual(
                server["x-amazon-apigateway-endpoint-configuration"],
                {"disableExecuteApiEndpoint": disabled},
            )
        self.assertEqual(own.outputs["ApiUrl"]["Value"], {"Fn::Sub": "https://${DomainName}"})
        self.assertEqual(
            own.outputs["ApiDomainTarget"]["Value"],
            {"Fn::GetAtt": ["ApiDomain", "RegionalDomainName"]},
        )

    # --- Parameters

    def test_references_resolve(self):
        """No combination of parameters leads to a reference to a missing resource."""
        pseudo = {
            "AWS::StackName",
            "AWS::AccountId",
            "AWS::Region",
            "AWS::Partition",
            "AWS::URLSuffix",
        }
        names = set(self.template["Parameters"])
        combinations = list(itertools.product(*PARAMETERS.values()))
        self.assertGreater(len(combinations), 3000)
        for combination in combinations:
            parameters = dict(zip(PARAMETERS, combination))
            for name, others in REQUIRED_WITH.items():
                parameters |= others if parameters[name] else {}
            deployment = self.deployed(**parameters)
            available = names | pseudo | set(deployment.resources)
            references = deployment.references([deployment.resources, deployment.outputs])
            self.assertLessEqual(references, available, parameters)

    def test_conditions_take_both_values(self):
        """The test parameters make every condition true and false."""
        seen = {name: set() for name in self.translated["Conditions"]}
        for name, values in PARAMETERS.items():
            for value in values:
                deployment = self.deployed(
                    **{name: value}, **(REQUIRED_WITH.get(name, {}) if value else {})
                )
                for condition in seen:
                    seen[condition].add(deployment.is_true({"Condition": condition}))
        self.assertEqual(seen, dict.fromkeys(seen, {True, False}))

    def test_incomplete_pairs_are_rejected(self):
        """The rules reject a parameter without the other one of its pair."""
        for name, others in REQUIRED_WITH.items():
            one, (other, value) = {name: PARAMETERS[name][1]}, only(others.items())
            for parameters, accepted in (
                ({}, True),
                (one | others, True),
                (one, False),
                ({other: value}, False),
            ):
                deployment = self.deployed(**parameters)
                rules = [rule["Assertions"] for rule in self.translated["Rules"].values()]
                self.assertEqual(
                    all(deployment.is_true(a["Assert"]) for rule in rules for a in rule),
                    accepted,
                    parameters,
                )

    def test_malformed_parameters_are_rejected(self):
        """Each pattern accepts valid values and rejects malformed ones."""
        cases = {
            "JobsStreamArn": (
                PARAMETERS["JobsStreamArn"],
                ["jobs", "arn:aws:dynamodb:eu-west-1:123456789012:table/jobs"],
            ),
            "AllowCidrs": (
                ["", "10.1.0.0/16", "10.1.0.0/16, fd00::/8"],
                ["10.1.0.0", "office", "10.1.0.0/16,"],
            ),
            "DenyCidrs": (
                ["", "10.1.0.0/16", "10.1.0.0/16, fd00::/8"],
                ["10.1.0.0", "office", "10.1.0.0/16,"],
            ),
            "RetrySchedule": (
                ["", "5s", "5s, 5m,2h", ",".join(19 * ["1h"])],
                ["5", "soon", "5s,,5m", "0s", ",".join(20 * ["1h"])],
            ),
            "DisableAfter": (["", "48h"], ["0h", "2 days"]),
            "RetentionDays": (["", "30"], ["0", "-1", "month"]),
            "WebhooksPerAccount": (["", "50"], ["0", "1.5"]),
            "RateLimitPerMinute": (["", "60"], ["0", "none"]),
            "RateLimitPerDay": (["", "10000"], ["0", "none"]),
            "SecretsKmsKey": (PARAMETERS["SecretsKmsKey"], ["alias/webhooks", "None"]),
            "AccountClaim": (["", "sub", "https://example.com/account"], ["a b", "x" * 129]),
            "ExtraCaLayer": (
                PARAMETERS["ExtraCaLayer"],
                ["ca", "arn:aws:lambda:eu-west-1:123456789012:layer:ca"],
            ),
            "DomainName": (
                ["", "webhooks.example.com"],
                ["https://webhooks.example.com", "webhooks", "webhooks.example.com/"],
            ),
            "CertificateArn": (
                PARAMETERS["CertificateArn"],
                ["arn:aws:iam::123456789012:server-certificate/webhooks"],
            ),
            "VpcSubnetIds": (["", "subnet-0a1b2c3d4e5f60718"], ["vpc-0a", "subnet-0a subnet-0b"]),
            "VpcSecurityGroupIds": (["", "sg-0a1b2c3d4e5f60718"], ["default", "sg-0a;sg-0b"]),
            "NotifyTopicArn": (
                PARAMETERS["NotifyTopicArn"],
                ["customers", "arn:aws:sqs:eu-west-1:123456789012:customers"],
            ),
            "AlarmTopic": (
                PARAMETERS["AlarmTopic"],
                ["night", "night@example.com", "arn:aws:sqs:eu-west-1:123456789012:night"],
            ),
        }
        patterns = {
            name: parameter["AllowedPattern"]
            for name, parameter in self.template["Parameters"].items()
            if "AllowedPattern" in parameter
        }
        self.assertEqual(set(patterns), set(cases))
        for name, (good, bad) in cases.items():
            for value in good:
                self.assertIsNotNone(re.fullmatch(patterns[name], value), (name, value))
            for value in bad:
                self.assertIsNone(re.fullmatch(patterns[name], value), (name, value))
        for name, parameter in self.template["Parameters"].items():
            restrictions = {"AllowedPattern", "AllowedValues", "MinValue"}
            self.assertTrue(restrictions & set(parameter), f"{name} accepts any value")

    def test_parameters_are_documented(self):
        """Every parameter is used, has a description and a group, and is in docs/DEPLOY.md."""
        groups = self.template["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
        grouped = [name for group in groups for name in group["Parameters"]]
        self.assertEqual(sorted(grouped), sorted(self.template["Parameters"]))
        deployment = self.deployed()
        used = deployment.references([self.translated["Resources"], self.translated["Conditions"]])
        self.assertLessEqual(set(grouped), used)
        page = (ROOT / "docs/DEPLOY.md").read_text()
        for name, parameter in self.template["Parameters"].items():
            self.assertTrue(parameter["Description"].endswith("."), name)
            self.assertIn(f"`{name}`", page, name)

    def test_template_fits_quotas(self):
        """The template is within the quotas of CloudFormation and IAM."""
        self.assertLess(len(self.resources), 500)
        self.assertLess(len(json.dumps(self.translated)), 1_000_000)
        # The quota applies to all inline policies of a role, without white space.
        inside = self.deployed(VpcSubnetIds="subnet-0a", VpcSecurityGroupIds="sg-0c")
        for role in ROLES:
            policies = inside.resources[role]["Properties"]["Policies"]
            # An ARN has up to about 150 characters.
            text = re.sub(
                r'\{"Fn::(GetAtt|Sub)":.*?\}|\{"Ref":.*?\}',
                '"' + "x" * 150 + '"',
                json.dumps(policies, separators=(",", ":")),
            )
            self.assertLess(len(text), 10_240, role)

    # --- Monitoring

    def alarms(self):
        return {
            name: alarm["Properties"]
            for name, alarm in self.deployed().resources.items()
            if alarm["Type"] == "AWS::CloudWatch::Alarm"
        }

    def metrics_of(self, alarm):
        """Returns the metrics of an alarm as (namespace, name, dimensions)."""
        queries = [
            query["MetricStat"]["Metric"]
            for query in alarm.get("Metrics", [])
            if "MetricStat" in query
        ] or [alarm]
        return [
            (
                name_references(q["Namespace"]),
                q["MetricName"],
                {d["Name"]: name_references(d["Value"]) for d in q.get("Dimensions", [])},
            )
            for q in queries
        ]

    def graphs(self):
        body = json.loads(
            name_references(self.deployed().resources["Dashboard"]["Properties"]["DashboardBody"])
        )
        return body["widgets"], [
            metric
            for widget in body["widgets"]
            if widget["type"] == "metric"
            for metric in expand_metrics(widget["properties"]["metrics"])
        ]

    def assert_exists(self, namespace, metric, dimensions, where):
        self.assertIn(set(dimensions), METRICS.get(namespace, {}).get(metric, []), (where, metric))
        for dimension, value in dimensions.items():
            if dimension in DIMENSION_VALUES:
                name, _, attribute = value.partition(".")
                reference = (self.resources[name]["Type"], attribute or None)
                self.assertEqual(reference, DIMENSION_VALUES[dimension], (where, metric))
            elif dimension == "Stack":
                self.assertEqual(value, "AWS::StackName", where)
            elif dimension == "Failure":
                self.assertIn(value, VALUES["failures"], where)
            else:
                indexes = self.properties(dimensions["TableName"])["GlobalSecondaryIndexes"]
                self.assertIn(value, [index["IndexName"] for index in indexes], where)

    def test_alarm_metrics_exist(self):
        """Every alarm uses existing metrics and dimensions."""
        self.assertGreaterEqual(len(self.alarms()), 13)
        for name, alarm in self.alarms().items():
            for metric in self.metrics_of(alarm):
                self.assert_exists(*metric, name)

    def test_runbook_covers_alarms(self):
        """docs/RUNBOOK.md has one section for each alarm, and the alarm's description names it."""
        headings = re.findall(r"^### ([A-Z]\w+)$", (ROOT / "docs/RUNBOOK.md").read_text(), re.M)
        self.assertEqual(sorted(headings), sorted(self.alarms()))
        for name, alarm in self.alarms().items():
            self.assertTrue(alarm["AlarmDescription"].endswith(f" docs/RUNBOOK.md, {name}."), name)

    def test_alarms_notify_topic(self):
        """Every alarm notifies the topic of the parameter, if any."""
        topic = [{"Ref": "AlarmTopic"}]
        for parameters, expected in (
            ({}, (None, None)),
            ({"AlarmTopic": PARAMETERS["AlarmTopic"][1]}, (topic, topic)),
        ):
            for name, alarm in self.deployed(**parameters).resources.items():
                if alarm["Type"] == "AWS::CloudWatch::Alarm":
                    properties = alarm["Properties"]
                    self.assertEqual(
                        (properties.get("AlarmActions"), properties.get("OKActions")),
                        expected,
                        name,
                    )
                    self.assertNotEqual(properties.get("ActionsEnabled"), False, name)

    def test_missing_data_breaches_two_alarms(self):
        """Missing data breaches only the alarms about a stream or a sweep that stands still."""
        silent = {
            name
            for name, alarm in self.alarms().items()
            if alarm["TreatMissingData"] == "breaching"
        }
        self.assertEqual(silent, {"StreamNotRead", "SweepBehind"})
        self.assertEqual(
            {alarm["TreatMissingData"] for alarm in self.alarms().values()},
            {"breaching", "notBreaching"},
        )

    def test_alarm_periods_fit_urgency(self):
        """Alarms about work for an operator start at once, and the others after 10 to 15 minutes.
        """
        waiting = {"RecordsDiscarded", "PoisonRecords", "RetryDeadLettered"}
        for name, alarm in self.alarms().items():
            periods = {
                query["MetricStat"]["Period"]
                for query in alarm.get("Metrics", [])
                if "MetricStat" in query
            } or {alarm["Period"]}
            delay = only(periods) * alarm.get("DatapointsToAlarm", alarm["EvaluationPeriods"])
            if name in waiting:
                self.assertEqual((alarm["EvaluationPeriods"], alarm["Threshold"]), (1, 0), name)
                self.assertEqual(alarm["ComparisonOperator"], "GreaterThanThreshold", name)
            else:
                self.assertTrue(600 <= delay <= 900, (name, delay))

    def test_stream_alarm_leaves_time(self):
        """StreamBehind starts in the first tenth of the time before Lambda discards records."""
        alarm = self.alarms()["StreamBehind"]
        latest_start = alarm["Threshold"] / 1000 + alarm["Period"] * alarm["EvaluationPeriods"]
        self.assertLess(latest_start, self.mapping()["MaximumRecordAgeInSeconds"] / 10)

    def test_sweep_alarm_matches_lookahead(self):
        """SweepBehind starts when the lag exceeds the sweep's lookahead."""
        self.assertEqual(
            self.alarms()["SweepBehind"]["Threshold"], 1000 * NUMBERS["sweep_lookahead_seconds"]
        )

    def test_queue_alarm_exceeds_delay(self):
        """RetriesBehind ignores delayed messages, and starts before messages expire."""
        alarm = self.alarms()["RetriesBehind"]
        self.assertGreater(alarm["Threshold"], NUMBERS["max_queue_delay_seconds"])
        latest_start = alarm["Threshold"] + alarm["Period"] * alarm["EvaluationPeriods"]
        self.assertLess(latest_start, self.properties("RetryQueue")["MessageRetentionPeriod"])

    def test_alarm_expressions_use_metrics(self):
        """An alarm with several metrics returns one expression over all of them."""
        for name, alarm in self.alarms().items():
            queries = alarm.get("Metrics")
            if queries is None:
                self.assertIn("Statistic", alarm, name)
                continue
            # CloudWatch's maximum.
            self.assertLessEqual(
                len([query for query in queries if "MetricStat" in query]), 10, name
            )
            expression = only(query for query in queries if query.get("ReturnData", True))[
                "Expression"
            ]
            ids = {query["Id"] for query in queries if "MetricStat" in query}
            named = set(re.findall(r"\b[a-z]\w*\b", expression))
            self.assertEqual(ids if "METRICS()" in expression else named, ids, name)

    def test_throttle_alarm_covers_tables(self):
        """TableThrottles covers every table and index."""
        seen = {
            tuple(sorted(dimensions.values()))
            for _, _, dimensions in self.metrics_of(self.alarms()["TableThrottles"])
        }
        indexes = {
            ("Deliveries", index["IndexName"])
            for index in self.properties("Deliveries")["GlobalSecondaryIndexes"]
        }
        self.assertEqual(seen, {(table,) for table in TABLES} | indexes)

    def test_jobs_table_name_from_stream_arn(self):
        """Alarm and output take the name of an existing jobs table from its stream's ARN."""
        arn = PARAMETERS["JobsStreamArn"][1]
        existing = self.deployed(JobsStreamArn=arn)
        alarm = existing.resources["TableThrottles"]["Properties"]
        value = alarm["Metrics"][-1]["MetricStat"]["Metric"]["Dimensions"][0]["Value"]
        self.assertEqual(existing.outputs["JobsTable"]["Value"], value)
        self.assertEqual(self.deployed().outputs["JobsTable"]["Value"], {"Ref": "Jobs"})
        part, (separator, text) = value["Fn::Select"][0], value["Fn::Select"][1]["Fn::Split"]
        for given, expected in ((arn, "jobs"), ("", "none")):
            self.assertEqual(
                text["Fn::Sub"].replace("${JobsStreamArn}", given).split(separator)[part], expected
            )

    def test_function_alarms_cover_functions(self):
        """The alarms about errors and throttles cover every function."""
        for name in ("FunctionErrors", "FunctionThrottles"):
            seen = {
                dimensions["FunctionName"]
                for _, _, dimensions in self.metrics_of(self.alarms()[name])
            }
            self.assertEqual(seen, set(BINARIES), name)

    def test_error_lines_are_counted(self):
        """Metric filters count the error lines of the dispatch and retry functions, except poison
        records.
        """
        alarm = self.alarms()["ErrorsLogged"]
        counted = [
            {
                "MetricNamespace": alarm["Namespace"],
                "MetricName": alarm["MetricName"],
                "MetricValue": "1",
            }
        ]
        filters = [
            filter_["Properties"] for filter_ in self.of_type("AWS::Logs::MetricFilter").values()
        ]
        self.assertEqual(
            {filter_["LogGroupName"]["Ref"] for filter_ in filters}, {"DispatchLogs", "RetryLogs"}
        )
        for filter_ in filters:
            self.assertEqual(filter_["MetricTransformations"], counted)
            # ci/deployed/test_functions.py verifies the message.
            pattern = r'\{ \$\.level = "ERROR" && \$\.message != "[^"]+" \}'
            self.assertRegex(filter_["FilterPattern"], f"^{pattern}$")

    def test_dashboard_shows_own_metrics(self):
        """The dashboard shows existing metrics, and all metrics of the functions."""
        widgets, metrics = self.graphs()
        for metric in metrics:
            self.assert_exists(*metric, "dashboard")
        shown = {name for namespace, name, _ in metrics if namespace == "NanoWebhooks"}
        self.assertEqual(shown, set(VALUES["metrics"]))
        self.assertEqual(
            {dimensions["Failure"] for _, _, dimensions in metrics if "Failure" in dimensions},
            set(VALUES["failures"]),
        )
        self.assertEqual(
            {widget["properties"].get("region", "AWS::Region") for widget in widgets},
            {"AWS::Region"},
        )

    def test_dashboard_starts_with_alarms(self):
        """The first widget shows every alarm."""
        widgets, _ = self.graphs()
        self.assertEqual((widgets[0]["type"], widgets[0]["y"]), ("alarm", 0))
        self.assertEqual(
            sorted(widgets[0]["properties"]["alarms"]),
            sorted(f"{name}.Arn" for name in self.alarms()),
        )

    def test_widgets_do_not_overlap(self):
        """No two widgets of the dashboard overlap."""
        widgets, _ = self.graphs()
        taken = [
            (x, y)
            for w in widgets
            for x in range(w["x"], w["x"] + w["width"])
            for y in range(w["y"], w["y"] + w["height"])
        ]
        self.assertEqual(len(taken), len(set(taken)))
        self.assertLess(max(x for x, _ in taken), 24)

    def test_queries_use_function_logs(self):
        """The saved queries and the dashboard's query read the functions' log groups."""
        groups = {
            function["Properties"]["LoggingConfig"]["LogGroup"]["Ref"]
            for function in self.of_type("AWS::Lambda::Function").values()
        }
        for name, query in self.of_type("AWS::Logs::QueryDefinition").items():
            self.assertLessEqual(
                {group["Ref"] for group in query["Properties"]["LogGroupNames"]}, groups, name
            )
        log = only(widget for widget in self.graphs()[0] if widget["type"] == "log")
        self.assertEqual(set(re.findall(r"SOURCE '(\w+)'", log["properties"]["query"])), groups)

    # --- Permissions

    def test_roles_have_no_wildcards(self):
        """No role has a wildcard or a policy outside the template."""
        self.assertEqual(set(self.of_type("AWS::IAM::Role")), ROLES)
        for role in ROLES:
            self.assertNotIn("ManagedPolicyArns", self.properties(role))
            for statement in self.statements(role):
                self.assertLessEqual(
                    set(statement), {"Sid", "Effect", "Action", "Resource", "Condition"}
                )
                # test_code_has_no_network_permissions covers the other statements.
                if statement["Sid"] not in ("Network", "NetworkNotByCode"):
                    text = json.dumps([statement["Action"], statement["Resource"]])
                    self.assertNotIn("*", text.replace("/aws/lambda/*", ""), statement["Sid"])
        kinds = {resource["Type"] for resource in self.resources.values()}
        self.assertFalse({kind for kind in kinds if "Policy" in kind}, kinds)

    def test_roles_grant_listed_permissions(self):
        """Each role grants the permissions in ci/permissions.json and those that Lambda requires."""
        lambda_permissions = {
            "ApiRole": {},
            "DispatchRole": {
                "DiscardedBatches": {"s3:ListBucket": {"*"}},
                "DiscardedBatches/aws/lambda/*": {"s3:PutObject": {"*"}},
            },
            "RetryRole": {"RetryQueue": {action: {"*"} for action in RECEIVE}},
        }
        logs = {"logs:CreateLogStream": {"*"}, "logs:PutLogEvents": {"*"}}
        self.assertEqual(set(PERMISSIONS), ROLES)
        for role, resources in PERMISSIONS.items():
            expected = {f"{role.removesuffix('Role')}Logs": logs} | lambda_permissions[role]
            for resource, actions in resources.items():
                expected.setdefault(resource, {}).update(
                    {name: set(keys) for name, keys in actions.items()}
                )
            self.assertEqual(self.granted(role), expected, role)

    def test_partitions_match_code(self):
        """Each partition pattern in a policy is a partition of the code."""
        patterns = {
            pattern
            for resources in PERMISSIONS.values()
            for actions in resources.values()
            for partitions in actions.values()
            for pattern in partitions
        }
        self.assertEqual(patterns - {"*"}, set(VALUES["partitions"].values()))

    def test_role_statements_are_known(self):
        """The roles have only the listed statements."""
        network = ("Network", "NetworkNotByCode")
        known = {
            "ApiRole": {
                "Webhooks",
                "Deliveries",
                "DeliveriesByState",
                "Retry",
                "SecretsKey",
                "Logs",
                *network,
            },
            "DispatchRole": {
                "SecretsKey",
                "Webhooks",
                "DataKeysAndReplays",
                "Health",
                "HealthUpdates",
                "EndedMarkers",
                "Holds",
                "Poison",
                "Deliveries",
                "DeliveriesDue",
                "DeliveriesByState",
                "Retry",
                "OperatorTopic",
                "JobsStream",
                "DiscardedBatches",
                "DiscardedBatchesBucket",
                "Logs",
                *network,
            },
            "RetryRole": {
                "SecretsKey",
                "Webhooks",
                "DataKeysAndReplays",
                "Health",
                "HealthUpdates",
                "EndedMarkers",
                "Poison",
                "Deliveries",
                "Retry",
                "Logs",
                *network,
            },
        }
        self.assertEqual({role: {s["Sid"] for s in self.statements(role)} for role in ROLES}, known)

    def test_kms_key_is_protected(self):
        """The KMS key is retained and rotated, and each role can use it only for data keys."""
        key = self.resources["SecretsKey"]
        self.assertEqual((key["DeletionPolicy"], key["UpdateReplacePolicy"]), ("Retain", "Retain"))
        self.assertIs(key["Properties"]["EnableKeyRotation"], True)
        context = VALUES["kms_encryption_context"]
        arn = {
            "Fn::If": [
                "CreateSecretsKey",
                {"Fn::GetAtt": ["SecretsKey", "Arn"]},
                {"Ref": "SecretsKmsKey"},
            ]
        }
        for role in ROLES:
            statement = only(s for s in self.statements(role) if s["Sid"] == "SecretsKey")
            self.assertEqual(statement["Resource"], arn, role)
            self.assertEqual(
                statement["Condition"],
                {"Null": {f"kms:EncryptionContext:{context}": "false"}},
                role,
            )
        for name in BINARIES:
            key_id = self.properties(name)["Environment"]["Variables"]["SECRETS_KMS_KEY_ID"]
            self.assertEqual(key_id["Fn::If"][:2], arn["Fn::If"][:2], name)
            self.assertEqual(
                key_id["Fn::If"][2],
                {"Fn::If": ["EncryptSecrets", {"Ref": "SecretsKmsKey"}, ""]},
                name,
            )


if __name__ == "__main__":
    unittest.main()
