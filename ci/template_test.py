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


def source(path):
    """A source file without its tests and comments."""
    text = (ROOT / path).read_text().split("#[cfg(test)]")[0]
    return re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE)


def the(matches):
    """The one match there must be."""
    (match,) = matches
    return match


def constant(path, name):
    return int(the(re.findall(rf"const {name}: \w+ = (?:Duration::from_secs\()?([0-9_]+)\)?;", source(path))))


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
        cls.written = yaml_parse((ROOT / "template.yaml").read_text())["Resources"]
        cls.resources = translate()["Resources"]

    def of_type(self, kind):
        found = {name: resource for name, resource in self.resources.items() if resource["Type"] == kind}
        self.assertTrue(found, kind)
        return found

    def mapping(self):
        return the(self.of_type("AWS::Lambda::EventSourceMapping").values())["Properties"]

    def statements(self, role):
        for policy in self.resources[role]["Properties"]["Policies"]:
            yield from policy["PolicyDocument"]["Statement"]

    def actions(self, role, resource):
        """What a role may do with one resource."""
        granted = [s for s in self.statements(role) if s["Resource"] == {"Fn::GetAtt": [resource, "Arn"]}]
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
        self.assertEqual(self.resources[name]["Properties"]["MessageRetentionPeriod"], 14 * 24 * 60 * 60)
        self.assertIs(self.resources[name]["Properties"]["SqsManagedSseEnabled"], True)
        self.assertEqual(self.actions("DispatchRole", name), {"sqs:SendMessage"})

    def test_batches_are_as_large_and_as_long_as_those_of_local_mode(self):
        self.assertEqual(self.mapping()["BatchSize"], constant("src/local/pump.rs", "BATCH_SIZE"))
        timeout = self.resources["DispatchFunction"]["Properties"]["Timeout"]
        reserve = constant("src/dispatch.rs", "RESERVE")
        self.assertEqual(timeout, constant("src/local/pump.rs", "BATCH_TIME") + reserve)

    def test_the_stream_is_that_of_the_table_created_here_or_the_one_given(self):
        stream = {"Fn::If": ["CreateJobs", {"Fn::GetAtt": ["Jobs", "StreamArn"]}, {"Ref": "JobsStreamArn"}]}
        self.assertEqual(self.mapping()["EventSourceArn"], stream)
        granted = the(s for s in self.statements("DispatchRole") if s["Resource"] == stream)
        expected = {"DescribeStream", "GetRecords", "GetShardIterator", "ListStreams"}
        self.assertEqual(set(granted["Action"]), {f"dynamodb:{action}" for action in expected})

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

        tables = {name: self.resources[name]["Properties"] for name in TABLES}
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

    def test_the_functions_have_the_settings_that_the_code_reads_and_no_others(self):
        read = set(re.findall(r'"([A-Z][A-Z0-9_]+)"', source("src/config.rs")))
        set_up = {name: set(f["Properties"]["Environment"]["Variables"]) for name, f in self.of_type("AWS::Lambda::Function").items()}
        self.assertEqual(set().union(*set_up.values()), read)
        for name, variables in set_up.items():
            self.assertLessEqual({"WEBHOOKS_TABLE", "DELIVERIES_TABLE"}, variables, name)

    def test_each_function_is_the_binary_of_its_name_without_local_mode(self):
        manifest = tomllib.loads((ROOT / "Cargo.toml").read_text())
        binaries = {"ApiFunction": "api", "DispatchFunction": "dispatch"}
        self.assertEqual(set(binaries), set(self.of_type("AWS::Lambda::Function")))
        for name, binary in binaries.items():
            metadata = self.written[name]["Metadata"]
            self.assertEqual(metadata, {"BuildMethod": "rust-cargolambda", "BuildProperties": {"Binary": binary}})
            self.assertIn(binary, [target["name"] for target in manifest["bin"]])
            self.assertEqual(self.resources[name]["Properties"]["Runtime"], "provided.al2023")
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
        self.assertEqual(set(self.of_type("AWS::IAM::Role")), {"ApiRole", "DispatchRole"})
        for role in ("ApiRole", "DispatchRole"):
            self.assertNotIn("ManagedPolicyArns", self.resources[role]["Properties"])
            for statement in self.statements(role):
                self.assertLessEqual(set(statement), {"Sid", "Effect", "Action", "Resource", "Condition"})
                self.assertNotIn("*", json.dumps([statement["Action"], statement["Resource"]]), statement["Sid"])
        kinds = {resource["Type"] for resource in self.resources.values()}
        self.assertFalse({kind for kind in kinds if "Policy" in kind}, kinds)

    def test_the_roles_may_do_with_the_tables_what_the_code_does_and_no_more(self):
        code = "".join(source(path.relative_to(ROOT)) for path in (ROOT / "src/store").glob("*.rs") if path.name != "tables.rs")
        calls = {
            r"\.get_item\(\)": "GetItem",
            r"\.query\(\)": "Query",
            r"\.scan\(\)": "Scan",
            r"\.put_item\(\)": "PutItem",
            r"\.update_item\(\)": "UpdateItem",
            r"\.delete_item\(\)": "DeleteItem",
            r"\.batch_get_item\(\)": "BatchGetItem",
            r"\.batch_write_item\(\)": "BatchWriteItem",
            r"\bPut::builder\(\)": "PutItem",
            r"\bUpdate::builder\(\)": "UpdateItem",
            r"\bDelete::builder\(\)": "DeleteItem",
            r"\bConditionCheck::builder\(\)": "ConditionCheckItem",
        }
        done = {f"dynamodb:{action}" for call, action in calls.items() if re.search(call, code)}
        granted = {role: {table: self.actions(role, table) for table in TABLES} for role in ("ApiRole", "DispatchRole")}
        self.assertEqual({a for tables in granted.values() for actions in tables.values() for a in actions}, done)
        item = {f"dynamodb:{action}" for action in ("GetItem", "Query", "PutItem", "UpdateItem", "DeleteItem")}
        self.assertEqual(granted["ApiRole"], {"Webhooks": item, "Deliveries": set(), "Jobs": set()})
        self.assertEqual(
            granted["DispatchRole"],
            {
                "Webhooks": {"dynamodb:Query", "dynamodb:PutItem"},
                "Deliveries": {"dynamodb:BatchGetItem", "dynamodb:BatchWriteItem"},
                "Jobs": set(),
            },
        )

    def test_dispatch_writes_to_the_webhooks_table_nothing_but_poison(self):
        put = the(s for s in self.statements("DispatchRole") if "dynamodb:PutItem" in listed(s["Action"]))
        self.assertEqual(put["Action"], "dynamodb:PutItem")
        prefix = the(re.findall(r'format!\("(POISON#)\{day\}"\)', source("src/store/keys.rs")))
        self.assertEqual(put["Condition"], {"ForAllValues:StringLike": {"dynamodb:LeadingKeys": [f"{prefix}*"]}})


if __name__ == "__main__":
    unittest.main()
