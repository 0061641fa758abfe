"""What the linters cannot know: the template has the properties that the code relies on, and agrees with the source."""

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


class Template(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.template = yaml_parse((ROOT / "template.yaml").read_text())
        cls.resources = translate()["Resources"]

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

    def test_what_is_given_up_is_named_in_a_queue_that_keeps_it_for_14_days(self):
        destination = self.mapping()["DestinationConfig"]["OnFailure"]["Destination"]
        name, attribute = destination["Fn::GetAtt"]
        self.assertEqual((self.resources[name]["Type"], attribute), ("AWS::SQS::Queue", "Arn"))
        self.assertEqual(self.properties(name)["MessageRetentionPeriod"], 14 * 24 * 60 * 60)
        self.assertIs(self.properties(name)["SqsManagedSseEnabled"], True)
        self.assertEqual(self.actions("DispatchRole", name), {"sqs:SendMessage"})

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
        self.assertNotIn("ReservedConcurrentExecutions", self.properties("RetryFunction"))

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
            if "retry_queue_url()" in code:
                read.add(the(set(re.findall(r'variable\("(\w+)"\)', methods["retry_queue_url"]))))
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

    def test_logs_go_to_groups_that_forget(self):
        groups = self.of_type("AWS::Logs::LogGroup")
        for name, group in groups.items():
            self.assertGreater(group["Properties"]["RetentionInDays"], 0, name)
        for name, function in self.of_type("AWS::Lambda::Function").items():
            properties = function["Properties"]
            group = properties["LoggingConfig"]["LogGroup"]["Ref"]
            self.assertIn(group, groups)
            role, _ = properties["Role"]["Fn::GetAtt"]
            self.assertEqual(self.actions(role, group), {"logs:CreateLogStream", "logs:PutLogEvents"}, name)

    # --- the permissions

    def test_no_role_has_a_wildcard_or_a_policy_that_is_not_written_here(self):
        self.assertEqual(set(self.of_type("AWS::IAM::Role")), ROLES)
        for role in ROLES:
            self.assertNotIn("ManagedPolicyArns", self.properties(role))
            for statement in self.statements(role):
                self.assertLessEqual(set(statement), {"Sid", "Effect", "Action", "Resource", "Condition"})
                self.assertNotIn("*", json.dumps([statement["Action"], statement["Resource"]]), statement["Sid"])
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
        known = {
            "ApiRole": {"Webhooks", "Deliveries", "DeliveriesByState", "Retry", "SecretsKey", "Logs"},
            "DispatchRole": {
                "SecretsKey", "Webhooks", "DataKeysAndReplays", "Health", "Poison", "Unparking", "Replaying", "Deliveries", "DeliveriesDue", "DeliveriesByState", "Retry",
                "JobsStream", "GivenUp", "Logs",
            },
            "RetryRole": {"SecretsKey", "Webhooks", "DataKeysAndReplays", "Health", "Deliveries", "Retry", "Logs"},
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
            self.assertEqual(given["Fn::If"][2], {"Fn::If": ["SealSecrets", {"Ref": "SecretsKmsKey"}, ""]}, name)


if __name__ == "__main__":
    unittest.main()
