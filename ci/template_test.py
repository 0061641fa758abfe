"""What the linters cannot know: the template has the properties that the code relies on, and agrees with the source."""

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
TABLES = {"Webhooks", "Deliveries", "Jobs"}
BINARIES = {"ApiFunction": "api", "DispatchFunction": "dispatch", "RetryFunction": "dispatch"}
ROLES = {"ApiRole", "DispatchRole", "RetryRole"}
# What Lambda itself does in the function's name, to bring it the messages.
RECEIVE = {"sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"}
# What Lambda does in the function's name, to connect it to a VPC.
NETWORK = {
    "ec2:CreateNetworkInterface", "ec2:DescribeNetworkInterfaces", "ec2:DescribeSubnets", "ec2:DeleteNetworkInterface",
    "ec2:AssignPrivateIpAddresses", "ec2:UnassignPrivateIpAddresses",
}
# What the value of a dimension names: a type, or with an attribute of it.
NAMED = {
    "FunctionName": ("AWS::Lambda::Function", None),
    "EventSourceMappingUUID": ("AWS::Lambda::EventSourceMapping", None),
    "QueueName": ("AWS::SQS::Queue", "QueueName"),
    "TableName": ("AWS::DynamoDB::Table", None),
    "ApiId": ("AWS::ApiGatewayV2::Api", None),
}
# For each optional setting values that make a difference.
SETTINGS = {
    "JobsStreamArn": ["", "arn:aws:dynamodb:eu-west-1:123456789012:table/jobs/stream/2026-01-01T00:00:00.000"],
    "SecretsKmsKey": ["", "none", "arn:aws:kms:eu-west-1:123456789012:key/00000000-0000-0000-0000-000000000000"],
    "ExtraCaLayer": ["", "arn:aws:lambda:eu-west-1:123456789012:layer:ca:1"],
    "CertificateArn": ["", "arn:aws:acm:eu-west-1:123456789012:certificate/00000000-0000-0000-0000-000000000000"],
    "VpcSubnetIds": ["", "subnet-0a,subnet-0b"],
    "AlarmTopic": ["", "arn:aws:sns:eu-west-1:123456789012:night"],
    "ReserveRetryConcurrency": ["no", "yes"],
    "DispatchReservedConcurrency": [0, 100],
    "ApiReservedConcurrency": [0, 50],
    "TableMaxReadUnits": [0, 4000],
    "TableMaxWriteUnits": [0, 2000],
}
# What belongs to another setting.
WITH = {"CertificateArn": {"DomainName": "webhooks.example.com"}, "VpcSubnetIds": {"VpcSecurityGroupIds": "sg-0c"}}
CALLS = {
    ".get_item()": "GetItem",
    ".query()": "Query",
    ".scan()": "Scan",
    ".put_item()": "PutItem",
    ".update_item()": "UpdateItem",
    ".delete_item()": "DeleteItem",
    ".batch_get_item()": "BatchGetItem",
    ".batch_write_item()": "BatchWriteItem",
    # The parts of a transaction, which needs their permissions and none of its own.
    "=Put::builder()": "PutItem",
    "=Update::builder()": "UpdateItem",
    "=Delete::builder()": "DeleteItem",
    "=ConditionCheck::builder()": "ConditionCheckItem",
}


def source(path):
    """A source file without its tests and comments."""
    text = (ROOT / path).read_text().split("#[cfg(test)]")[0]
    return re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE)


def the(matches):
    """The one match there must be."""
    (match,) = matches
    return match


def constant(path, name):
    """A number; of a duration, its seconds."""
    value = rf"const {name}: \w+ = (?:Duration::from_(secs|mins)\()?([0-9_]+)\)?;"
    unit, number = the(re.findall(value, source(path)))
    return int(number) * (60 if unit == "mins" else 1)


# The functions' own metrics, and the kinds of a failed attempt, which are a dimension of the metric that counts them.
OWN = set(re.findall(r'(?:=> |\()"(\w+)"(?:,\n|, COUNT|, MILLISECONDS)', source("src/metrics/embedded.rs")))
KINDS = {kind.lower() for kind in re.findall(r"Self::(\w+)", the(re.findall(r"const ALL: \[Self; \d+\] =(.*?);", source("src/delivery/attempt.rs"), re.S)))}
# The metrics that there are, and the sets of dimensions under which there are values: those of AWS as its documentation of each
# service lists them. A name or a set that does not exist is an empty graph, and an alarm that never goes off.
METRICS = {
    "NanoWebhooks": {name: [{"Stack"}] for name in OWN} | {"FailedAttempts": [{"Stack"}, {"Stack", "Failure"}]},
    "NanoWebhooks/AWS::StackName": {"ErrorLines": [set()]},
    "AWS/Lambda": {
        **{name: [{"FunctionName"}] for name in ("Errors", "Throttles", "Duration", "ConcurrentExecutions", "IteratorAge")},
        **{name: [{"EventSourceMappingUUID"}] for name in ("PolledEventCount", "DroppedEventCount", "OnFailureDestinationDeliveredEventCount")},
        "ClaimedAccountConcurrency": [set()],
    },
    "AWS/SQS": {
        name: [{"QueueName"}]
        for name in (
            "ApproximateAgeOfOldestMessage", "ApproximateAgeOfOldestMessageInQuietGroups", "ApproximateNumberOfMessagesVisible",
            "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed", "ApproximateNumberOfNoisyGroups",
        )
    },
    "AWS/DynamoDB": {
        name: [{"TableName"}, {"TableName", "GlobalSecondaryIndexName"}]
        for name in ("ReadThrottleEvents", "WriteThrottleEvents", "ConsumedReadCapacityUnits", "ConsumedWriteCapacityUnits")
    },
    "AWS/ApiGateway": {name: [{"ApiId"}] for name in ("Count", "4xx", "5xx", "Latency")},
}


def functions(*patterns):
    """The functions of source files, name to text without white space; those of one name together."""
    found = {}
    for path in (path for pattern in patterns for path in sorted((ROOT / "src").glob(pattern))):
        code = source(path.relative_to(ROOT))
        for _, name, text in re.findall(r"^( *)(?:pub(?:\(\w+\))? )?(?:async )?fn (\w+)(.*?)^\1}", code, re.M | re.S):
            found[name] = found.get(name, "") + re.sub(r"\s", "", text)
    return found


def reached(known, roots):
    """The texts of these functions and of all that they call as methods of the same object."""
    names, open_ = set(), set(roots)
    while open_:
        names |= open_
        called = {name for root in open_ for name in re.findall(r"self\.(\w+)\(", known[root])}
        open_ = (called & set(known)) - names
    return [known[name] for name in sorted(names)]


def asked_of_the_tables(texts):
    """What a part of the code asks of the tables through the store: table or index to actions."""
    store = functions("store/[!t]*.rs")  # Without tables.rs: no deployed function creates the tables.
    indexes = dict(re.findall(r'const (\w+): &str = "(\w+)"', source("src/store/tables.rs")))
    asked = {}
    for text in reached(store, re.findall(r"\bstore\.(\w+)\(", "".join(texts))):
        actions = {f"dynamodb:{action}" for call, action in CALLS.items() if call in text}
        if not actions:
            continue
        table = the(set(re.findall(r"self\.tables\.(\w+)", text))).title()
        used = [f"{table}/index/{indexes[index]}" for index in re.findall(r"\.index_name\((\w+)\)", text)]
        # An index has no consistent reads: what asks for one reads the table.
        for resource in used + [table] * (not used or "consistent_read(true)" in text):
            asked.setdefault(resource, set()).update(actions)
    return asked


def listed(value):
    return value if isinstance(value, list) else [value]


def translate():
    """The template as CloudFormation gets it, with all that SAM adds."""
    template = yaml_parse((ROOT / "template.yaml").read_text())
    for resource in template["Resources"].values():
        # `sam build` puts the place of the artifact here.
        if resource["Type"] == "AWS::Serverless::Function":
            resource["Properties"]["CodeUri"] = "s3://bucket/key"
    template["Globals"]["Function"].pop("CodeUri")
    parameters = {name: value["Default"] for name, value in template["Parameters"].items()}
    return Translator({}, Parser()).translate(template, parameters)


class Deployment:
    """The template as CloudFormation deploys it with these settings: without what its conditions leave out."""

    def __init__(self, template, **settings):
        self.given = {name: parameter["Default"] for name, parameter in template["Parameters"].items()} | settings
        lists = {name for name, parameter in template["Parameters"].items() if parameter["Type"] == "CommaDelimitedList"}
        self.given |= {name: self.given[name].split(",") for name in lists}
        self.conditions = template["Conditions"]
        kept = {name: r for name, r in template["Resources"].items() if "Condition" not in r or self.holds({"Condition": r["Condition"]})}
        outputs = {name: o for name, o in template["Outputs"].items() if "Condition" not in o or self.holds({"Condition": o["Condition"]})}
        self.resources = {name: self.without_ifs(resource) for name, resource in kept.items()}
        self.outputs = {name: self.without_ifs(output) for name, output in outputs.items()}

    def holds(self, condition):
        (function, of), = condition.items()
        match function.removeprefix("Fn::"):
            case "Condition":
                return self.holds(self.conditions[of])
            case "Not":
                return not self.holds(of[0])
            case "And":
                return all(self.holds(part) for part in of)
            case "Or":
                return any(self.holds(part) for part in of)
            case "Equals":
                return str(self.value(of[0])) == str(self.value(of[1]))
            case "EachMemberEquals":
                return all(member == of[1] for member in self.value(of[0]))
        raise AssertionError(f"{function} is no condition that these tests know")

    def value(self, of):
        if isinstance(of, dict) and "Ref" in of:
            return self.given[of["Ref"]]
        if isinstance(of, dict) and "Fn::Join" in of:
            return of["Fn::Join"][0].join(self.value(of["Fn::Join"][1]))
        return of

    def without_ifs(self, of):
        """With each `Fn::If` replaced by its branch, and what is `AWS::NoValue` left out."""
        if isinstance(of, list):
            return [part for part in map(self.without_ifs, of) if part != {"Ref": "AWS::NoValue"}]
        if not isinstance(of, dict):
            return of
        if set(of) == {"Fn::If"}:
            condition, then, otherwise = of["Fn::If"]
            return self.without_ifs(then if self.holds({"Condition": condition}) else otherwise)
        found = {key: self.without_ifs(part) for key, part in of.items()}
        return {key: part for key, part in found.items() if part != {"Ref": "AWS::NoValue"}}

    def references(self, of):
        """The names that a value refers to."""
        if isinstance(of, list):
            return set().union(*map(self.references, of))
        if not isinstance(of, dict):
            return set()
        if set(of) == {"Ref"}:
            return {of["Ref"]}
        if set(of) == {"Fn::GetAtt"}:
            return {of["Fn::GetAtt"][0]}
        if set(of) == {"Fn::Sub"}:
            text, variables = of["Fn::Sub"] if isinstance(of["Fn::Sub"], list) else (of["Fn::Sub"], {})
            names = {name.split(".")[0] for name in re.findall(r"\$\{([\w.:]+)\}", text)}
            return names - set(variables) | self.references(variables)
        return set().union(*map(self.references, of.values()))


def tokens(value):
    """A value with each reference replaced by the name that it refers to."""
    if isinstance(value, dict) and set(value) == {"Ref"}:
        return value["Ref"]
    if isinstance(value, dict) and set(value) == {"Fn::GetAtt"}:
        return ".".join(value["Fn::GetAtt"])
    if isinstance(value, dict) and set(value) == {"Fn::Sub"}:
        text, variables = value["Fn::Sub"] if isinstance(value["Fn::Sub"], list) else (value["Fn::Sub"], {})
        return re.sub(r"\$\{([\w.:]+)\}", lambda match: tokens(variables.get(match[1], match[1])), text)
    return value


def written_out(rows):
    """The metrics of a graph as (namespace, name, dimensions), with CloudWatch's abbreviations written out."""
    before, found = [], []
    for row in rows:
        fields = [field for field in row if not isinstance(field, dict)]
        if not fields:
            continue  # An expression over the others.
        if fields[0] == "...":
            fields = before[: len(before) - len(fields) + 1] + fields[1:]
        before = [before[place] if field == "." else field for place, field in enumerate(fields)]
        found.append((before[0], before[1], dict(zip(before[2::2], before[3::2]))))
    return found


class Template(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.template = yaml_parse((ROOT / "template.yaml").read_text())
        cls.translated = translate()
        cls.resources = cls.translated["Resources"]

    def deployed(self, **settings):
        return Deployment(self.translated, **settings)

    def of_type(self, kind):
        found = {name: resource for name, resource in self.resources.items() if resource["Type"] == kind}
        self.assertTrue(found, kind)
        return found

    def mapping(self, function="DispatchFunction"):
        mappings = [resource["Properties"] for resource in self.of_type("AWS::Lambda::EventSourceMapping").values()]
        return the(mapping for mapping in mappings if mapping["FunctionName"] == {"Ref": function})

    def properties(self, name):
        return self.resources[name]["Properties"]

    def statements(self, role):
        for policy in self.properties(role)["Policies"]:
            for statement in policy["PolicyDocument"]["Statement"]:
                # A statement may have a condition of the template: then it is there or nothing is.
                yield statement["Fn::If"][1] if "Fn::If" in statement else statement

    def actions(self, role, resource):
        """What a role may do with one resource: `Table`, `Table/index/name` or any other with an ARN."""
        table, _, index = resource.partition("/")
        arn = {"Fn::Sub": f"${{{table}.Arn}}/{index}"} if index else {"Fn::GetAtt": [table, "Arn"]}
        granted = [s for s in self.statements(role) if s["Resource"] == arn]
        return {action for statement in granted for action in listed(statement["Action"])}

    # --- the stream

    def test_the_filter_lets_through_every_record_whose_new_status_is_terminal_and_nothing_narrower(self):
        pattern = the(self.mapping()["FilterCriteria"]["Filters"])["Pattern"]
        self.assertEqual(json.loads(pattern), {"dynamodb": {"NewImage": {"status": {"S": ["completed", "failed"]}}}})

    def test_the_statuses_of_the_filter_are_those_that_the_code_calls_terminal(self):
        arms = re.findall(r'"(\w+)" => Some\(Self::\w+\)', the(re.findall(r"fn from_status.*?\n    }", source("src/event.rs"), re.S)))
        pattern = json.loads(the(self.mapping()["FilterCriteria"]["Filters"])["Pattern"])
        self.assertEqual(set(pattern["dynamodb"]["NewImage"]["status"]["S"]), set(arms))

    def test_the_stream_is_read_from_its_beginning(self):
        self.assertEqual(self.mapping()["StartingPosition"], "TRIM_HORIZON")

    def test_a_failed_record_fails_alone(self):
        self.assertEqual(self.mapping()["FunctionResponseTypes"], ["ReportBatchItemFailures"])
        self.assertIs(self.mapping()["BisectBatchOnFunctionError"], True)

    def test_retries_are_bounded_and_leave_time_to_read_what_was_given_up(self):
        self.assertTrue(1000 <= self.mapping()["MaximumRetryAttempts"] <= 10_000)
        hour = 60 * 60
        self.assertTrue(6 * hour <= self.mapping()["MaximumRecordAgeInSeconds"] <= 12 * hour)

    def test_what_is_given_up_is_kept_whole_in_a_private_bucket(self):
        destination = self.mapping()["DestinationConfig"]["OnFailure"]["Destination"]
        self.assertEqual(destination, {"Fn::GetAtt": ["DiscardedBatches", "Arn"]})
        bucket = self.resources["DiscardedBatches"]
        self.assertEqual(bucket["Type"], "AWS::S3::Bucket")
        self.assertEqual((bucket["DeletionPolicy"], bucket["UpdateReplacePolicy"]), ("Retain", "Retain"))
        properties = bucket["Properties"]
        self.assertEqual(set(properties["PublicAccessBlockConfiguration"].values()), {True})
        self.assertEqual(len(properties["PublicAccessBlockConfiguration"]), 4)
        self.assertEqual(the(properties["OwnershipControls"]["Rules"]), {"ObjectOwnership": "BucketOwnerEnforced"})
        self.assertTrue(properties["BucketEncryption"]["ServerSideEncryptionConfiguration"])
        # Long enough for a person to come back from leave.
        rule = the(properties["LifecycleConfiguration"]["Rules"])
        self.assertEqual(rule["Status"], "Enabled")
        self.assertGreaterEqual(rule["ExpirationInDays"], 30)

    def test_dispatch_alone_may_put_what_is_given_up_and_only_into_this_account(self):
        for role in ROLES:
            statements = [s for s in self.statements(role) if "DiscardedBatches" in json.dumps(s["Resource"])]
            granted = {action: s["Resource"] for s in statements for action in listed(s["Action"])}
            objects = {"s3:PutObject": {"Fn::Sub": "${DiscardedBatches.Arn}/aws/lambda/*"}, "s3:ListBucket": {"Fn::GetAtt": ["DiscardedBatches", "Arn"]}}
            self.assertEqual(granted, objects if role == "DispatchRole" else {}, role)
            for statement in statements:
                self.assertEqual(statement["Condition"], {"StringEquals": {"s3:ResourceAccount": {"Ref": "AWS::AccountId"}}})

    def test_the_mapping_tells_whether_it_reads_and_what_it_gave_up(self):
        self.assertEqual(self.mapping()["MetricsConfig"], {"Metrics": ["EventCount"]})

    def test_batches_are_as_large_and_as_long_as_those_of_local_mode(self):
        self.assertEqual(self.mapping()["BatchSize"], constant("src/local/pump.rs", "BATCH_SIZE"))
        timeout = self.properties("DispatchFunction")["Timeout"]
        reserve = constant("src/dispatch.rs", "RESERVE")
        self.assertEqual(timeout, constant("src/local/pump.rs", "BATCH_TIME") + reserve)

    def test_the_stream_is_that_of_the_table_created_here_or_the_one_given(self):
        stream = {"Fn::If": ["CreateJobs", {"Fn::GetAtt": ["Jobs", "StreamArn"]}, {"Ref": "JobsStreamArn"}]}
        self.assertEqual(self.mapping()["EventSourceArn"], stream)
        granted = the(s for s in self.statements("DispatchRole") if s["Resource"] == stream)
        expected = {"DescribeStream", "GetRecords", "GetShardIterator", "ListStreams"}
        self.assertEqual(set(granted["Action"]), {f"dynamodb:{action}" for action in expected})

    # --- the retry queue

    def test_the_retry_function_takes_the_queue_and_a_failed_message_fails_alone(self):
        mapping = self.mapping("RetryFunction")
        self.assertEqual(mapping["EventSourceArn"], {"Fn::GetAtt": ["RetryQueue", "Arn"]})
        self.assertEqual(mapping["FunctionResponseTypes"], ["ReportBatchItemFailures"])
        # More than 10 would wait for one another, and the code must work on all at once.
        self.assertTrue(1 <= mapping["BatchSize"] <= min(10, constant("src/dispatch/invocation.rs", "CONCURRENT_MESSAGES")))
        self.assertNotIn("MaximumBatchingWindowInSeconds", mapping)

    def test_how_many_retries_run_at_the_same_time_is_bounded_by_the_operator(self):
        self.assertEqual(self.mapping("RetryFunction")["ScalingConfig"], {"MaximumConcurrency": {"Ref": "RetryConcurrency"}})
        parameter = self.template["Parameters"]["RetryConcurrency"]
        self.assertEqual((parameter["Type"], parameter["MinValue"], parameter["MaxValue"]), ("Number", 2, 1000))

    def test_reserved_concurrency_is_each_functions_own_and_never_less_than_the_queue_asks_for(self):
        def reserved(**settings):
            resources = self.deployed(**settings).resources
            return {name: resources[name]["Properties"].get("ReservedConcurrentExecutions") for name in BINARIES}

        none = dict.fromkeys(BINARIES)
        self.assertEqual(reserved(), none)
        self.assertEqual(reserved(ApiReservedConcurrency=5), none | {"ApiFunction": {"Ref": "ApiReservedConcurrency"}})
        self.assertEqual(reserved(DispatchReservedConcurrency=5), none | {"DispatchFunction": {"Ref": "DispatchReservedConcurrency"}})
        self.assertEqual(reserved(ReserveRetryConcurrency="yes"), none | {"RetryFunction": {"Ref": "RetryConcurrency"}})

    def test_a_retry_has_the_time_of_its_lease_and_a_message_six_times_that_of_the_function(self):
        timeout = self.properties("RetryFunction")["Timeout"]
        lease = constant("src/delivery/due.rs", "LEASE")
        self.assertGreater(timeout, lease)
        self.assertGreaterEqual(self.properties("RetryQueue")["VisibilityTimeout"], 6 * timeout)

    def test_a_message_lives_until_it_has_failed_often_enough_and_not_for_many_sweeps_more(self):
        queue = self.properties("RetryQueue")
        redrive = queue["RedrivePolicy"]
        self.assertTrue(5 <= redrive["maxReceiveCount"] <= 10)
        needed = constant("src/delivery/due.rs", "QUEUE_REACH") + redrive["maxReceiveCount"] * queue["VisibilityTimeout"]
        self.assertTrue(needed <= queue["MessageRetentionPeriod"] <= 2 * needed)
        self.assertEqual(redrive["deadLetterTargetArn"], {"Fn::GetAtt": ["RetryDeadLetters", "Arn"]})
        # A message keeps its age when it is moved.
        self.assertEqual(self.properties("RetryDeadLetters")["MessageRetentionPeriod"], 14 * 24 * 60 * 60)

    def test_the_dead_letters_take_those_of_the_retry_queue_and_no_others(self):
        allow = self.properties("RetryDeadLetters")["RedriveAllowPolicy"]
        self.assertEqual(allow["redrivePermission"], "byQueue")
        name = self.properties("RetryQueue")["QueueName"]["Fn::Sub"]
        arn = "arn:${AWS::Partition}:sqs:${AWS::Region}:${AWS::AccountId}:" + name
        self.assertEqual(allow["sourceQueueArns"], [{"Fn::Sub": arn}])
        # Two stacks of an account must not have the same one.
        self.assertIn("${AWS::StackName}", name)

    def test_every_queue_is_encrypted_and_the_retry_queue_is_none_in_order(self):
        for name, queue in self.of_type("AWS::SQS::Queue").items():
            self.assertIs(queue["Properties"]["SqsManagedSseEnabled"], True, name)
            self.assertNotIn("FifoQueue", queue["Properties"], name)

    def test_lambda_lets_the_retry_function_cause_its_own_messages_and_no_other(self):
        allowed = {name for name, f in self.of_type("AWS::Lambda::Function").items() if f["Properties"].get("RecursiveLoop") == "Allow"}
        self.assertEqual(allowed, {"RetryFunction"})

    # --- the schedule

    def test_the_sweep_comes_as_often_as_in_local_mode(self):
        rule = the(self.of_type("AWS::Events::Rule").values())["Properties"]
        self.assertEqual(constant("src/local/timer.rs", "SWEEP"), 60)
        self.assertEqual(rule["ScheduleExpression"], "rate(1 minute)")
        self.assertNotEqual(rule.get("State"), "DISABLED")
        target = the(rule["Targets"])
        self.assertEqual(target["Arn"], {"Fn::GetAtt": ["DispatchFunction", "Arn"]})
        # The event must be EventBridge's own: the code knows it by its `detail-type`.
        self.assertFalse({"Input", "InputPath", "InputTransformer"} & set(target))
        self.assertIn('"Scheduled Event"', source("src/dispatch/invocation.rs"))

    def test_a_sweep_that_fails_is_left_to_the_next_one(self):
        config = the(self.of_type("AWS::Lambda::EventInvokeConfig").values())["Properties"]
        self.assertEqual(config["FunctionName"], {"Ref": "DispatchFunction"})
        self.assertEqual((config["MaximumRetryAttempts"], config["MaximumEventAgeInSeconds"]), (0, 60))
        self.assertLess(self.properties("DispatchFunction")["Timeout"], constant("src/local/timer.rs", "SWEEP"))

    # --- the tables

    def test_every_table_is_kept_encrypted_recoverable_and_on_demand(self):
        tables = self.of_type("AWS::DynamoDB::Table")
        self.assertEqual(set(tables), TABLES)
        for name, table in tables.items():
            with self.subTest(name):
                self.assertEqual(table["DeletionPolicy"], "Retain")
                self.assertEqual(table["UpdateReplacePolicy"], "Retain")
                properties = table["Properties"]
                self.assertIs(properties["SSESpecification"]["SSEEnabled"], True)
                self.assertIs(properties["PointInTimeRecoverySpecification"]["PointInTimeRecoveryEnabled"], True)
                self.assertEqual(properties["BillingMode"], "PAY_PER_REQUEST")

    def test_a_bound_on_units_is_that_of_each_of_our_tables_and_indexes_and_not_of_the_jobs(self):
        def bounds(**settings):
            resources = self.deployed(**settings).resources
            tables = {name: resources[name]["Properties"] for name in TABLES}
            indexes = {i["IndexName"]: i for i in tables["Deliveries"]["GlobalSecondaryIndexes"]}
            return {name: of.get("OnDemandThroughput") for name, of in (tables | indexes).items()}

        ours = ("Webhooks", "Deliveries", "due", "by_state")
        reads, writes = {"MaxReadRequestUnits": {"Ref": "TableMaxReadUnits"}}, {"MaxWriteRequestUnits": {"Ref": "TableMaxWriteUnits"}}
        self.assertEqual(bounds(), dict.fromkeys((*ours, "Jobs")))
        self.assertEqual(bounds(TableMaxReadUnits=9), dict.fromkeys(ours, reads) | {"Jobs": None})
        self.assertEqual(bounds(TableMaxWriteUnits=9), dict.fromkeys(ours, writes) | {"Jobs": None})
        self.assertEqual(bounds(TableMaxReadUnits=9, TableMaxWriteUnits=9), dict.fromkeys(ours, reads | writes) | {"Jobs": None})

    def test_the_tables_have_the_shape_of_those_that_local_mode_creates(self):
        code = source("src/store/tables.rs")
        keys = source("src/store/keys.rs")
        strings = dict(re.findall(r'const (\w+): &str = "([^"]*)"', keys + code))
        lists = {name: re.findall(r'"([^"]+)"', items) for name, items in re.findall(r"const (\w+): \[&str; \d+\] =\s*\[(.*?)\]", code, re.S)}
        flat = re.sub(r"\s", "", code)

        def value(name):
            return name.strip('"') if name.startswith('"') else strings[name.removeprefix("keys::")]

        index = r"index_name\((\w+)\)\.key_schema\(hash\(([\w:]+)\)\)\.key_schema\(range\(([\w:]+)\)\)\.projection\(include\(&(?:(\w+)|\[(.*?)\])\)\)"
        indexes = {
            value(name): ([(value(partition), "HASH"), (value(sort), "RANGE")], lists[constant] if constant else re.findall(r'"([^"]+)"', attributes))
            for name, partition, sort, constant, attributes in re.findall(index, flat)
        }
        self.assertEqual(len(indexes), code.count("GlobalSecondaryIndex::builder()"))
        types = {value(name): "S" for name in re.findall(r"\.attribute_definitions\(text\(([\w:\"]+)\)\)", flat)}
        types |= {value(name): kind for name, kind in re.findall(r"\.attribute_definitions\(attribute\(([\w:]+),ScalarAttributeType::(\w)\)\)", flat)}
        primary = [(strings["PK"], "HASH"), (strings["SK"], "RANGE")]

        def schema(of):
            return [(key["AttributeName"], key["KeyType"]) for key in of["KeySchema"]]

        tables = {name: self.properties(name) for name in TABLES}
        self.assertEqual(schema(tables["Webhooks"]), primary)
        self.assertEqual(schema(tables["Deliveries"]), primary)
        self.assertEqual(schema(tables["Jobs"]), [("task_id", "HASH")])
        self.assertIn('hash("task_id")', flat)
        for index in tables["Deliveries"]["GlobalSecondaryIndexes"]:
            self.assertEqual(index["Projection"]["ProjectionType"], "INCLUDE")
        templates = {i["IndexName"]: (schema(i), i["Projection"]["NonKeyAttributes"]) for i in tables["Deliveries"]["GlobalSecondaryIndexes"]}
        self.assertEqual(templates, indexes)
        defined = {d["AttributeName"]: d["AttributeType"] for table in tables.values() for d in table["AttributeDefinitions"]}
        self.assertEqual(defined, types)
        for name in ("Webhooks", "Deliveries"):
            ttl = {"AttributeName": strings["EXPIRES_AT"], "Enabled": True}
            self.assertEqual(tables[name]["TimeToLiveSpecification"], ttl)
        view = the(re.findall(r"StreamViewType::(\w+)", flat))
        self.assertEqual(tables["Jobs"]["StreamSpecification"]["StreamViewType"], {"NewAndOldImages": "NEW_AND_OLD_IMAGES"}[view])

    # --- the functions

    def test_each_function_has_the_settings_that_it_reads_and_no_others(self):
        # The fields of the settings are documented with the variables that they come from.
        struct = the(re.findall(r"pub struct Config \{\n(.*?)\n}", (ROOT / "src/config.rs").read_text(), re.S))
        documented = re.findall(r"((?: +/// .*\n)+) +pub (\w+): ", struct)
        fields = {field: re.findall(r"`([A-Z][A-Z0-9_]+)`", doc) for doc, field in documented}
        methods = functions("config.rs")
        for name, binary in BINARIES.items():
            code = source(f"src/bin/{binary}.rs")
            used = set(re.findall(r"\bconfig\.(\w+)", code))
            used |= set(re.findall(r"\bself\.(\w+)", "".join(reached(methods, used & set(methods)))))
            read = {variable for field in used for variable in fields.get(field, [])}
            for alone in ("retry_queue_url", "stack_name"):
                if f"{alone}()" in code:
                    read.add(the(set(re.findall(r'variable\("(\w+)"\)', methods[alone]))))
            self.assertEqual(set(self.properties(name)["Environment"]["Variables"]), read, name)

    def test_no_setting_of_the_code_is_forgotten(self):
        read = set(re.findall(r'"([A-Z][A-Z0-9_]+)"', source("src/config.rs")))
        given = {variable for name in BINARIES for variable in self.properties(name)["Environment"]["Variables"]}
        self.assertEqual(given, read)

    def test_the_functions_of_one_binary_have_the_same_settings(self):
        settings = {name: self.properties(name)["Environment"]["Variables"] for name in BINARIES}
        self.assertEqual(settings["DispatchFunction"], settings["RetryFunction"])
        for variables in settings.values():
            self.assertEqual(variables["RETRY_QUEUE_URL"], {"Ref": "RetryQueue"})

    def test_each_function_is_its_binary_without_local_mode(self):
        manifest = tomllib.loads((ROOT / "Cargo.toml").read_text())
        self.assertEqual(set(BINARIES), set(self.of_type("AWS::Lambda::Function")))
        for name, binary in BINARIES.items():
            metadata = self.template["Resources"][name]["Metadata"]
            self.assertEqual(metadata, {"BuildMethod": "rust-cargolambda", "BuildProperties": {"Binary": binary}})
            self.assertIn(binary, [target["name"] for target in manifest["bin"]])
            self.assertEqual(self.properties(name)["Runtime"], "provided.al2023")
        # SAM passes no features on; cargo-lambda reads them in the manifest.
        self.assertEqual(manifest["package"].get("metadata"), {"lambda": {"build": {"no_default_features": True}}})

    def test_the_processor_is_a_parameter(self):
        for name, function in self.of_type("AWS::Lambda::Function").items():
            self.assertEqual(function["Properties"]["Architectures"], [{"Ref": "Architecture"}], name)

    def test_every_path_and_method_is_answered_by_the_function(self):
        body = the(self.of_type("AWS::ApiGatewayV2::Api").values())["Properties"]["Body"]
        self.assertEqual(list(body["paths"]), ["$default"])
        self.assertEqual(list(body["paths"]["$default"]), ["x-amazon-apigateway-any-method"])
        integration = body["paths"]["$default"]["x-amazon-apigateway-any-method"]["x-amazon-apigateway-integration"]
        self.assertEqual(integration["payloadFormatVersion"], "2.0")
        self.assertEqual(the(self.of_type("AWS::ApiGatewayV2::Stage").values())["Properties"]["StageName"], "$default")

    def test_logs_go_to_groups_that_forget_when_the_operator_says(self):
        groups = self.of_type("AWS::Logs::LogGroup")
        self.assertEqual(len(groups), len(BINARIES) + 1)
        for name, group in groups.items():
            self.assertEqual(group["Properties"]["RetentionInDays"], {"Ref": "LogRetentionDays"}, name)
        for name, function in self.of_type("AWS::Lambda::Function").items():
            properties = function["Properties"]
            group = properties["LoggingConfig"]["LogGroup"]["Ref"]
            self.assertIn(group, groups)
            role, _ = properties["Role"]["Fn::GetAtt"]
            self.assertEqual(self.actions(role, group), {"logs:CreateLogStream", "logs:PutLogEvents"}, name)
        stage = the(self.of_type("AWS::ApiGatewayV2::Stage").values())["Properties"]
        self.assertEqual(stage["AccessLogSettings"]["DestinationArn"], {"Fn::GetAtt": ["AccessLogs", "Arn"]})

    def test_no_line_with_metrics_is_filtered_out(self):
        for name, function in self.of_type("AWS::Lambda::Function").items():
            logging = function["Properties"]["LoggingConfig"]
            # A line without a level counts as INFO.
            self.assertEqual((logging["LogFormat"], logging["ApplicationLogLevel"]), ("JSON", "INFO"), name)

    def test_the_functions_name_their_stack_as_the_alarms_and_the_dashboard_do(self):
        for name in ("DispatchFunction", "RetryFunction"):
            self.assertEqual(self.properties(name)["Environment"]["Variables"]["STACK_NAME"], {"Ref": "AWS::StackName"}, name)

    # --- the network

    def test_every_function_that_calls_endpoints_is_in_the_vpc_if_there_is_one(self):
        calling = {name for name, binary in BINARIES.items() if "config.client(" in source(f"src/bin/{binary}.rs")}
        self.assertEqual(calling, set(BINARIES))
        inside = self.deployed(VpcSubnetIds="subnet-0a", VpcSecurityGroupIds="sg-0c")
        for name in BINARIES:
            self.assertNotIn("VpcConfig", self.deployed().resources[name]["Properties"])
            expected = {"SubnetIds": {"Ref": "VpcSubnetIds"}, "SecurityGroupIds": {"Ref": "VpcSecurityGroupIds"}}
            self.assertEqual(inside.resources[name]["Properties"]["VpcConfig"], expected, name)

    def test_lambda_may_connect_the_functions_to_the_vpc_and_their_code_may_not(self):
        inside = self.deployed(VpcSubnetIds="subnet-0a", VpcSecurityGroupIds="sg-0c")
        for role in ROLES:
            self.assertNotIn("ec2:", json.dumps(self.deployed().resources[role]), role)
            statements = inside.resources[role]["Properties"]["Policies"][0]["PolicyDocument"]["Statement"]
            allow, deny = [s for s in statements if "ec2:" in json.dumps(s["Action"])]
            self.assertEqual((allow["Effect"], set(allow["Action"])), ("Allow", NETWORK), role)
            self.assertEqual((deny["Effect"], deny["Action"]), ("Deny", "ec2:*"), role)
            self.assertEqual(deny["Condition"], {"Null": {"lambda:SourceFunctionArn": "false"}}, role)

    def test_a_name_of_ones_own_replaces_the_gateways(self):
        self.assertFalse({"ApiDomain", "ApiDomainMapping"} & set(self.deployed().resources))
        own = self.deployed(DomainName="webhooks.example.com", CertificateArn=SETTINGS["CertificateArn"][1])
        configuration = the(own.resources["ApiDomain"]["Properties"]["DomainNameConfigurations"])
        self.assertEqual(configuration, {"CertificateArn": {"Ref": "CertificateArn"}, "EndpointType": "REGIONAL", "SecurityPolicy": "TLS_1_2"})
        mapping = own.resources["ApiDomainMapping"]["Properties"]
        stage = the(name for name, r in own.resources.items() if r["Type"] == "AWS::ApiGatewayV2::Stage")
        self.assertEqual(mapping, {"ApiId": {"Ref": "Api"}, "DomainName": {"Ref": "ApiDomain"}, "Stage": {"Ref": stage}})
        for deployment, disabled in ((self.deployed(), False), (own, True)):
            server = the(deployment.resources["Api"]["Properties"]["Body"]["servers"])
            self.assertEqual(server["x-amazon-apigateway-endpoint-configuration"], {"disableExecuteApiEndpoint": disabled})
        self.assertEqual(own.outputs["ApiUrl"]["Value"], {"Fn::Sub": "https://${DomainName}"})
        self.assertEqual(own.outputs["ApiDomainTarget"]["Value"], {"Fn::GetAtt": ["ApiDomain", "RegionalDomainName"]})

    # --- the settings

    def test_whatever_is_chosen_nothing_refers_to_what_is_not_there(self):
        pseudo = {"AWS::StackName", "AWS::AccountId", "AWS::Region", "AWS::Partition", "AWS::URLSuffix"}
        parameters = set(self.template["Parameters"])
        choices = list(itertools.product(*SETTINGS.values()))
        self.assertGreater(len(choices), 3000)
        for chosen in choices:
            settings = dict(zip(SETTINGS, chosen))
            for name, others in WITH.items():
                settings |= others if settings[name] else {}
            deployment = self.deployed(**settings)
            known = parameters | pseudo | set(deployment.resources)
            refers = deployment.references([deployment.resources, deployment.outputs])
            self.assertLessEqual(refers, known, settings)

    def test_every_condition_can_hold_and_not_hold(self):
        seen = {name: set() for name in self.translated["Conditions"]}
        for name, values in SETTINGS.items():
            for value in values:
                deployment = self.deployed(**{name: value}, **(WITH.get(name, {}) if value else {}))
                for condition in seen:
                    seen[condition].add(deployment.holds({"Condition": condition}))
        self.assertEqual(seen, dict.fromkeys(seen, {True, False}))

    def test_half_of_a_pair_is_refused(self):
        for name, others in WITH.items():
            one, (other, value) = {name: SETTINGS[name][1]}, the(others.items())
            for settings, accepted in (({}, True), (one | others, True), (one, False), ({other: value}, False)):
                deployment = self.deployed(**settings)
                rules = [rule["Assertions"] for rule in self.translated["Rules"].values()]
                self.assertEqual(all(deployment.holds(a["Assert"]) for rule in rules for a in rule), accepted, settings)

    def test_malformed_settings_are_refused(self):
        cases = {
            "JobsStreamArn": (SETTINGS["JobsStreamArn"], ["jobs", "arn:aws:dynamodb:eu-west-1:123456789012:table/jobs"]),
            "AllowCidrs": (["", "10.1.0.0/16", "10.1.0.0/16, fd00::/8"], ["10.1.0.0", "office", "10.1.0.0/16,"]),
            "RetrySchedule": (["", "5s", "5s, 5m,2h", ",".join(19 * ["1h"])], ["5", "soon", "5s,,5m", "0s", ",".join(20 * ["1h"])]),
            "DisableAfter": (["", "48h"], ["0h", "2 days"]),
            "RetentionDays": (["", "30"], ["0", "-1", "month"]),
            "WebhooksPerAccount": (["", "50"], ["0", "1.5"]),
            "RateLimitPerMinute": (["", "60"], ["0", "none"]),
            "RateLimitPerDay": (["", "10000"], ["0", "none"]),
            "SecretsKmsKey": (SETTINGS["SecretsKmsKey"], ["alias/webhooks", "None"]),
            "AccountClaim": (["", "sub", "https://example.com/account"], ["a b", "x" * 129]),
            "ExtraCaLayer": (SETTINGS["ExtraCaLayer"], ["ca", "arn:aws:lambda:eu-west-1:123456789012:layer:ca"]),
            "DomainName": (["", "webhooks.example.com"], ["https://webhooks.example.com", "webhooks", "webhooks.example.com/"]),
            "CertificateArn": (SETTINGS["CertificateArn"], ["arn:aws:iam::123456789012:server-certificate/webhooks"]),
            "VpcSubnetIds": (["", "subnet-0a1b2c3d4e5f60718"], ["vpc-0a", "subnet-0a subnet-0b"]),
            "VpcSecurityGroupIds": (["", "sg-0a1b2c3d4e5f60718"], ["default", "sg-0a;sg-0b"]),
            "AlarmTopic": (SETTINGS["AlarmTopic"], ["night", "night@example.com", "arn:aws:sqs:eu-west-1:123456789012:night"]),
        }
        patterns = {name: parameter["AllowedPattern"] for name, parameter in self.template["Parameters"].items() if "AllowedPattern" in parameter}
        self.assertEqual(set(patterns), set(cases))
        for name, (good, bad) in cases.items():
            for value in good:
                self.assertIsNotNone(re.fullmatch(patterns[name], value), (name, value))
            for value in bad:
                self.assertIsNone(re.fullmatch(patterns[name], value), (name, value))
        for name, parameter in self.template["Parameters"].items():
            bounds = {"AllowedPattern", "AllowedValues", "MinValue"}
            self.assertTrue(bounds & set(parameter), f"{name} takes anything")

    def test_every_setting_is_used_explained_and_in_a_group(self):
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

    def test_the_template_is_within_the_bounds_of_what_it_is_given_to(self):
        self.assertLess(len(self.resources), 500)
        self.assertLess(len(json.dumps(self.translated)), 1_000_000)
        # IAM counts the inline policies of a role together, without white space.
        inside = self.deployed(VpcSubnetIds="subnet-0a", VpcSecurityGroupIds="sg-0c")
        for role in ROLES:
            policies = inside.resources[role]["Properties"]["Policies"]
            # A reference becomes an ARN of up to about 150 characters.
            text = re.sub(r'\{"Fn::(GetAtt|Sub)":.*?\}|\{"Ref":.*?\}', '"' + "x" * 150 + '"', json.dumps(policies, separators=(",", ":")))
            self.assertLess(len(text), 10_240, role)

    # --- the watching

    def alarms(self):
        return {name: alarm["Properties"] for name, alarm in self.deployed().resources.items() if alarm["Type"] == "AWS::CloudWatch::Alarm"}

    def metrics_of(self, alarm):
        """The metrics that an alarm looks at, as (namespace, name, dimensions)."""
        queries = [query["MetricStat"]["Metric"] for query in alarm.get("Metrics", []) if "MetricStat" in query] or [alarm]
        return [(tokens(q["Namespace"]), q["MetricName"], {d["Name"]: tokens(d["Value"]) for d in q.get("Dimensions", [])}) for q in queries]

    def graphs(self):
        body = json.loads(tokens(self.deployed().resources["Dashboard"]["Properties"]["DashboardBody"]))
        return body["widgets"], [metric for widget in body["widgets"] if widget["type"] == "metric" for metric in written_out(widget["properties"]["metrics"])]

    def assert_exists(self, namespace, metric, dimensions, where):
        self.assertIn(set(dimensions), METRICS.get(namespace, {}).get(metric, []), (where, metric))
        for dimension, value in dimensions.items():
            if dimension in NAMED:
                kind, attribute = NAMED[dimension]
                name, _, of = value.partition(".")
                self.assertEqual((self.resources[name]["Type"], of or None), (kind, attribute), (where, metric))
            elif dimension == "Stack":
                self.assertEqual(value, "AWS::StackName", where)
            elif dimension == "Failure":
                self.assertIn(value, KINDS, where)
            else:
                indexes = self.properties(dimensions["TableName"])["GlobalSecondaryIndexes"]
                self.assertIn(value, [index["IndexName"] for index in indexes], where)

    def test_every_alarm_looks_at_metrics_that_exist(self):
        self.assertGreaterEqual(len(self.alarms()), 13)
        for name, alarm in self.alarms().items():
            for metric in self.metrics_of(alarm):
                self.assert_exists(*metric, name)

    def test_every_alarm_is_explained_to_whoever_it_wakes_and_nothing_else_is(self):
        headings = re.findall(r"^### ([A-Z]\w+)$", (ROOT / "docs/RUNBOOK.md").read_text(), re.M)
        self.assertEqual(sorted(headings), sorted(self.alarms()))
        for name, alarm in self.alarms().items():
            self.assertTrue(alarm["AlarmDescription"].endswith(f" docs/RUNBOOK.md, {name}."), name)

    def test_every_alarm_tells_the_topic_if_there_is_one(self):
        topic = [{"Ref": "AlarmTopic"}]
        for settings, expected in (({}, (None, None)), ({"AlarmTopic": SETTINGS["AlarmTopic"][1]}, (topic, topic))):
            for name, alarm in self.deployed(**settings).resources.items():
                if alarm["Type"] == "AWS::CloudWatch::Alarm":
                    properties = alarm["Properties"]
                    self.assertEqual((properties.get("AlarmActions"), properties.get("OKActions")), expected, name)
                    self.assertNotEqual(properties.get("ActionsEnabled"), False, name)

    def test_silence_alarms_only_where_it_means_that_something_stands_still(self):
        silent = {name for name, alarm in self.alarms().items() if alarm["TreatMissingData"] == "breaching"}
        self.assertEqual(silent, {"StreamNotRead", "SweepBehind"})
        self.assertEqual({alarm["TreatMissingData"] for alarm in self.alarms().values()}, {"breaching", "notBreaching"})

    def test_nobody_is_woken_by_a_blip_and_nothing_that_waits_for_a_person_waits_unseen(self):
        waiting = {"RecordsDiscarded", "PoisonRecords", "RetryDeadLettered"}
        for name, alarm in self.alarms().items():
            periods = {query["MetricStat"]["Period"] for query in alarm.get("Metrics", []) if "MetricStat" in query} or {alarm["Period"]}
            bad = the(periods) * alarm.get("DatapointsToAlarm", alarm["EvaluationPeriods"])
            if name in waiting:
                self.assertEqual((alarm["EvaluationPeriods"], alarm["Threshold"]), (1, 0), name)
                self.assertEqual(alarm["ComparisonOperator"], "GreaterThanThreshold", name)
            else:
                self.assertTrue(600 <= bad <= 900, (name, bad))

    def test_whoever_is_woken_has_most_of_the_time_until_records_are_given_up(self):
        alarm = self.alarms()["StreamBehind"]
        told = alarm["Threshold"] / 1000 + alarm["Period"] * alarm["EvaluationPeriods"]
        self.assertLess(told, self.mapping()["MaximumRecordAgeInSeconds"] / 10)

    def test_the_sweep_is_late_when_it_is_later_than_it_looks_ahead(self):
        self.assertEqual(self.alarms()["SweepBehind"]["Threshold"], 1000 * constant("src/delivery/due.rs", "LOOK_AHEAD"))

    def test_a_message_that_is_meant_to_wait_is_not_late_and_one_that_is_late_is_seen_before_it_is_dropped(self):
        alarm = self.alarms()["RetriesBehind"]
        self.assertGreater(alarm["Threshold"], constant("src/delivery/due.rs", "QUEUE_REACH"))
        told = alarm["Threshold"] + alarm["Period"] * alarm["EvaluationPeriods"]
        self.assertLess(told, self.properties("RetryQueue")["MessageRetentionPeriod"])

    def test_an_alarm_over_several_metrics_returns_one_and_knows_the_others(self):
        for name, alarm in self.alarms().items():
            queries = alarm.get("Metrics")
            if queries is None:
                self.assertIn("Statistic", alarm, name)
                continue
            # As many as CloudWatch takes.
            self.assertLessEqual(len([query for query in queries if "MetricStat" in query]), 10, name)
            expression = the(query for query in queries if query.get("ReturnData", True))["Expression"]
            ids = {query["Id"] for query in queries if "MetricStat" in query}
            named = set(re.findall(r"\b[a-z]\w*\b", expression))
            self.assertEqual(ids if "METRICS()" in expression else named, ids, name)

    def test_each_table_and_index_is_watched_for_throttling(self):
        seen = {tuple(sorted(dimensions.values())) for _, _, dimensions in self.metrics_of(self.alarms()["TableThrottles"])}
        indexes = {("Deliveries", index["IndexName"]) for index in self.properties("Deliveries")["GlobalSecondaryIndexes"]}
        self.assertEqual(seen, {(table,) for table in TABLES} | indexes)

    def test_the_existing_jobs_table_is_found_in_its_streams_arn(self):
        arn = SETTINGS["JobsStreamArn"][1]
        alarm = self.deployed(JobsStreamArn=arn).resources["TableThrottles"]["Properties"]
        value = alarm["Metrics"][-1]["MetricStat"]["Metric"]["Dimensions"][0]["Value"]
        part, (separator, text) = value["Fn::Select"][0], value["Fn::Select"][1]["Fn::Split"]
        for given, found in ((arn, "jobs"), ("", "none")):
            self.assertEqual(text["Fn::Sub"].replace("${JobsStreamArn}", given).split(separator)[part], found)

    def test_every_function_is_watched_for_errors_and_throttles(self):
        for name in ("FunctionErrors", "FunctionThrottles"):
            seen = {dimensions["FunctionName"] for _, _, dimensions in self.metrics_of(self.alarms()[name])}
            self.assertEqual(seen, set(BINARIES), name)

    def test_what_goes_wrong_and_is_put_off_is_counted_from_the_logs_of_whoever_delivers(self):
        alarm = self.alarms()["ErrorsLogged"]
        counted = [{"MetricNamespace": alarm["Namespace"], "MetricName": alarm["MetricName"], "MetricValue": "1"}]
        filters = [filter_["Properties"] for filter_ in self.of_type("AWS::Logs::MetricFilter").values()]
        self.assertEqual({filter_["LogGroupName"]["Ref"] for filter_ in filters}, {"DispatchLogs", "RetryLogs"})
        code = source("src/dispatch.rs")
        for filter_ in filters:
            self.assertEqual(filter_["MetricTransformations"], counted)
            self.assertIn('$.level = "ERROR"', filter_["FilterPattern"])
            left_out = the(re.findall(r'\$\.message != "(.*?)"', filter_["FilterPattern"]))
            self.assertIn(f'"{left_out}"', code)

    def test_the_dashboard_shows_metrics_that_exist_and_all_of_our_own(self):
        widgets, metrics = self.graphs()
        for metric in metrics:
            self.assert_exists(*metric, "dashboard")
        shown = {name for namespace, name, _ in metrics if namespace == "NanoWebhooks"}
        self.assertEqual(shown, OWN)
        self.assertEqual({dimensions["Failure"] for _, _, dimensions in metrics if "Failure" in dimensions}, KINDS)
        self.assertEqual({widget["properties"].get("region", "AWS::Region") for widget in widgets}, {"AWS::Region"})

    def test_the_dashboard_begins_with_every_alarm(self):
        widgets, _ = self.graphs()
        self.assertEqual((widgets[0]["type"], widgets[0]["y"]), ("alarm", 0))
        self.assertEqual(sorted(widgets[0]["properties"]["alarms"]), sorted(f"{name}.Arn" for name in self.alarms()))

    def test_no_two_graphs_lie_over_one_another(self):
        widgets, _ = self.graphs()
        taken = [(x, y) for w in widgets for x in range(w["x"], w["x"] + w["width"]) for y in range(w["y"], w["y"] + w["height"])]
        self.assertEqual(len(taken), len(set(taken)))
        self.assertLess(max(x for x, _ in taken), 24)

    def test_the_queries_look_into_the_functions_logs(self):
        groups = {function["Properties"]["LoggingConfig"]["LogGroup"]["Ref"] for function in self.of_type("AWS::Lambda::Function").values()}
        for name, query in self.of_type("AWS::Logs::QueryDefinition").items():
            self.assertLessEqual({group["Ref"] for group in query["Properties"]["LogGroupNames"]}, groups, name)
        log = the(widget for widget in self.graphs()[0] if widget["type"] == "log")
        self.assertEqual(set(re.findall(r"SOURCE '(\w+)'", log["properties"]["query"])), groups)

    # --- the permissions

    def test_no_role_has_a_wildcard_or_a_policy_that_is_not_written_here(self):
        self.assertEqual(set(self.of_type("AWS::IAM::Role")), ROLES)
        for role in ROLES:
            self.assertNotIn("ManagedPolicyArns", self.properties(role))
            for statement in self.statements(role):
                self.assertLessEqual(set(statement), {"Sid", "Effect", "Action", "Resource", "Condition"})
                if statement["Sid"] not in ("Network", "NetworkNotByCode"):  # These have a test of their own.
                    text = json.dumps([statement["Action"], statement["Resource"]])
                    self.assertNotIn("*", text.replace("/aws/lambda/*", ""), statement["Sid"])
        kinds = {resource["Type"] for resource in self.resources.values()}
        self.assertFalse({kind for kind in kinds if "Policy" in kind}, kinds)

    def test_each_role_may_do_what_its_part_of_the_code_does_and_no_more(self):
        dispatch = functions("dispatch.rs", "dispatch/*.rs")
        self.assertEqual(set(re.findall(r"self\.(\w+)\(", dispatch["invoke"])), {"stream", "sweep", "retry_all"})
        parts = {
            "ApiRole": list(functions("api.rs", "api/*.rs").values()),
            "DispatchRole": reached(dispatch, ["stream", "sweep"]),
            "RetryRole": reached(dispatch, ["retry_all"]),
        }
        resources = TABLES | {"Deliveries/index/due", "Deliveries/index/by_state"}
        for role, texts in parts.items():
            granted = {resource: self.actions(role, resource) for resource in resources}
            asked = asked_of_the_tables(texts)
            self.assertTrue(asked, role)
            self.assertEqual({resource: actions for resource, actions in granted.items() if actions}, asked, role)
            sends = {"sqs:SendMessage"} if ".queue.set(" in "".join(texts) else set()
            self.assertEqual(self.actions(role, "RetryQueue"), sends | (RECEIVE if role == "RetryRole" else set()), role)
            self.assertFalse(self.actions(role, "RetryDeadLetters"), role)

    def test_the_roles_have_no_statement_that_these_tests_do_not_know(self):
        network = ("Network", "NetworkNotByCode")
        known = {
            "ApiRole": {"Webhooks", "Deliveries", "DeliveriesByState", "Retry", "SecretsKey", "Logs", *network},
            "DispatchRole": {
                "SecretsKey", "Webhooks", "DataKeysAndReplays", "Health", "Poison", "ResumeMarkers", "ReplayMarkers", "Deliveries", "DeliveriesDue", "DeliveriesByState", "Retry",
                "JobsStream", "DiscardedBatches", "DiscardedBatchesBucket", "Logs", *network,
            },
            "RetryRole": {"SecretsKey", "Webhooks", "DataKeysAndReplays", "Health", "Deliveries", "Retry", "Logs", *network},
        }
        self.assertEqual({role: {s["Sid"] for s in self.statements(role)} for role in ROLES}, known)

    def test_dispatch_reaches_no_partition_but_those_of_accounts_poison_data_keys_and_what_goes_on_with_sweeps(self):
        code, keys = source("src/store/keys.rs"), functions("store/keys.rs")
        account = the(re.findall(r'format!\("(ACCOUNT#)\{account\}"\)', keys["account"])) + "*"
        poison = the(re.findall(r'format!\("(POISON#)\{day\}"\)', keys["poison"])) + "*"
        unparking = the(re.findall(r'UNPARKING: &str = "(\w+)"', code))
        replaying = the(re.findall(r'REPLAYING: &str = "(\w+)"', code))
        data_keys = the(re.findall(r'DATA_KEYS: &str = "(\w+)"', code))
        reached = {
            "DispatchRole": {
                "dynamodb:Query": {account, unparking, replaying},
                "dynamodb:GetItem": {data_keys, account},
                "dynamodb:PutItem": {account, poison, unparking},
                "dynamodb:UpdateItem": {account},
                "dynamodb:DeleteItem": {unparking, replaying},
            },
            "RetryRole": {
                "dynamodb:Query": {account},
                "dynamodb:GetItem": {data_keys, account},
                "dynamodb:PutItem": {account},
                "dynamodb:UpdateItem": {account},
            },
        }
        for role, expected in reached.items():
            granted = {}
            for statement in self.statements(role):
                if statement["Resource"] == {"Fn::GetAtt": ["Webhooks", "Arn"]}:
                    partitions = statement["Condition"]["ForAllValues:StringLike"]["dynamodb:LeadingKeys"]
                    for action in listed(statement["Action"]):
                        granted.setdefault(action, set()).update(partitions)
            self.assertEqual(granted, expected, role)

    def test_the_key_of_the_secrets_is_kept_and_used_for_data_keys_alone(self):
        key = self.resources["SecretsKey"]
        self.assertEqual((key["DeletionPolicy"], key["UpdateReplacePolicy"]), ("Retain", "Retain"))
        self.assertIs(key["Properties"]["EnableKeyRotation"], True)
        vault = functions("store/vault.rs")
        calls = {".generate_data_key()": "kms:GenerateDataKey", ".decrypt()": "kms:Decrypt"}
        context = the(re.findall(r'CONTEXT: &str = "([\w-]+)"', source("src/store/vault.rs")))
        arn = {"Fn::If": ["CreateSecretsKey", {"Fn::GetAtt": ["SecretsKey", "Arn"]}, {"Ref": "SecretsKmsKey"}]}
        # Only the API seals; the others open.
        for role, roots in {"ApiRole": ["sealing_key"], "DispatchRole": ["secrets_of"], "RetryRole": ["secrets_of"]}.items():
            asked = {action for text in reached(vault, roots) for call, action in calls.items() if call in text}
            statement = the(s for s in self.statements(role) if s["Sid"] == "SecretsKey")
            self.assertEqual(set(listed(statement["Action"])), asked, role)
            self.assertEqual(statement["Resource"], arn, role)
            self.assertEqual(statement["Condition"], {"Null": {f"kms:EncryptionContext:{context}": "false"}}, role)
        for name in BINARIES:
            given = self.properties(name)["Environment"]["Variables"]["SECRETS_KMS_KEY_ID"]
            self.assertEqual(given["Fn::If"][:2], arn["Fn::If"][:2], name)
            self.assertEqual(given["Fn::If"][2], {"Fn::If": ["EncryptSecrets", {"Ref": "SecretsKmsKey"}, ""]}, name)


if __name__ == "__main__":
    unittest.main()
