"""The built template, the changes that the emulated account requires, and the deployed stack."""

import copy
import json
import subprocess

import yaml

from emulators import BUILT, ROOT
from support import build_environment

TEMPLATE = yaml.safe_load((BUILT / ".aws-sam/build/template.yaml").read_text())
NAME = "nano-webhooks"


def functions():
    """Returns the properties of each function, including those from Globals."""
    common = TEMPLATE["Globals"]["Function"]
    return {
        name: common | resource["Properties"]
        for name, resource in TEMPLATE["Resources"].items()
        if resource["Type"] == "AWS::Serverless::Function"
    }


def create_tables(db, prefix):
    """Creates the template's tables with the properties that DynamoDB Local supports.

    A table's name is the prefix and its logical id.
    """
    for name, resource in TEMPLATE["Resources"].items():
        if resource["Type"] == "AWS::DynamoDB::Table":
            schema = select(
                resource["Properties"], "BillingMode", "AttributeDefinitions", "KeySchema"
            )
            if indexes := resource["Properties"].get("GlobalSecondaryIndexes"):
                schema["GlobalSecondaryIndexes"] = [
                    select(index, "IndexName", "KeySchema", "Projection") for index in indexes
                ]
            db.create_table(TableName=prefix + name, **schema)


def select(properties, *names):
    return {name: value for name, value in properties.items() if name in names}


# --- Differences between the emulated account and AWS


def inline_numbers(template):
    """The account passes a parameter of type Number as a string and then fails to compare it."""
    parameters = {
        name: parameter["Default"]
        for name, parameter in template["Parameters"].items()
        if parameter["Type"] == "Number"
    }
    changed = 0
    for part in parts(template["Resources"]):
        for name, value in part.items():
            if isinstance(value, dict) and value.get("Ref") in parameters:
                part[name] = parameters[value["Ref"]]
                changed += 1
    return changed


def remove_encryption_contexts(template):
    """The account denies every request with the unsupported condition key `kms:EncryptionContext`."""
    changed = 0
    for statement in statements(template):
        if "kms:EncryptionContext" in json.dumps(statement.get("Condition")):
            del statement["Condition"]
            changed += 1
    return changed


def allow_message_batches(template):
    """AWS requires `sqs:SendMessage` for a batch. The account requires `sqs:SendMessageBatch`,
    which AWS does not have.
    """
    changed = 0
    for statement in statements(template):
        actions = (
            statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        )
        if statement["Effect"] == "Allow" and "sqs:SendMessage" in actions:
            statement["Action"] = [*actions, "sqs:SendMessageBatch"]
            changed += 1
    return changed


def remove_queries(template):
    """The account does not support saved queries of CloudWatch Logs."""
    names = [
        name
        for name, resource in template["Resources"].items()
        if resource["Type"] == "AWS::Logs::QueryDefinition"
    ]
    for name in names:
        del template["Resources"][name]
    return len(names)


def replace_metric_math(template):
    """The account does not support metric math. An alarm uses the first of its metrics instead."""
    alarms = [
        resource["Properties"]
        for resource in template["Resources"].values()
        if resource["Type"] == "AWS::CloudWatch::Alarm"
    ]
    math = [properties for properties in alarms if "Metrics" in properties]
    for properties in math:
        watched = next(
            metric["MetricStat"] for metric in properties.pop("Metrics") if "MetricStat" in metric
        )
        properties |= watched["Metric"] | {
            "Period": watched["Period"],
            "Statistic": watched["Stat"],
        }
    return len(math)


def unwrap_joins(template):
    """The account passes a list parameter as a string, which a condition cannot join."""
    changed = 0
    for part in parts(template["Conditions"]):
        for value in part.values():
            for index, operand in enumerate(value) if isinstance(value, list) else ():
                if isinstance(operand, dict) and "Fn::Join" in operand:
                    _, value[index] = operand["Fn::Join"]
                    changed += 1
    return changed


CHANGES = [
    remove_queries,
    replace_metric_math,
    unwrap_joins,
    inline_numbers,
    remove_encryption_contexts,
    allow_message_batches,
]


def adapt_template():
    """Returns the built template with these changes. A change without an effect is an error."""
    template = copy.deepcopy(TEMPLATE)
    for change in CHANGES:
        assert change(template), f"{change.__name__} changes nothing and can be removed"
    return template


def statements(template):
    """Returns all policy statements."""
    return [part for part in parts(template["Resources"]) if {"Effect", "Action"} <= set(part)]


def parts(value):
    """Returns all mappings in a value, at any depth."""
    if isinstance(value, list):
        return [part for each in value for part in parts(each)]
    return [value, *parts(list(value.values()))] if isinstance(value, dict) else []


# --- Operator commands


def sam(account, *args):
    result = subprocess.run(
        ["sam", *args],
        cwd=BUILT,
        env=build_environment(
            ROOT
            | {
                "AWS_ENDPOINT_URL": account.url,
                "SAM_CLI_TELEMETRY": "0",
                "SAM_CLI_POLL_DELAY": "0.2",
            }
        ),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, (
        f"sam {args}: exit {result.returncode}\n{result.stdout}\n{result.stderr}\n{account.log_text()}"
    )


class Stack:
    """The stack, deployed with samconfig.toml."""

    def __init__(self, account, **parameters):
        self.account = account
        self.deploy(parameters)
        self.create_routes()

    def deploy(self, parameters):
        changed = BUILT / ".aws-sam/build/emulated.yaml"
        changed.write_text(yaml.safe_dump(adapt_template(), sort_keys=False))
        sam(
            self.account,
            *(
                "deploy",
                "--template-file",
                str(changed),
                "--config-file",
                str(BUILT / "samconfig.toml"),
            ),
            *("--no-confirm-changeset", "--no-progressbar", "--parameter-overrides"),
            *(f"{name}={value}" for name, value in parameters.items()),
        )
        (described,) = self.account.client("cloudformation").describe_stacks(StackName=NAME)[
            "Stacks"
        ]
        assert described["StackStatus"] in ("CREATE_COMPLETE", "UPDATE_COMPLETE"), described
        self.outputs = {
            output["OutputKey"]: output["OutputValue"] for output in described["Outputs"]
        }

    def resources(self):
        """Maps logical to physical ids."""
        resources = self.account.client("cloudformation").describe_stack_resources(StackName=NAME)[
            "StackResources"
        ]
        return {
            resource["LogicalResourceId"]: resource["PhysicalResourceId"] for resource in resources
        }

    def create_routes(self):
        """Creates the routes of the HTTP API. API Gateway creates them from the Body property; the
        account does not.
        """
        gateway, api = self.account.client("apigatewayv2"), self.resources()["Api"]
        assert not gateway.get_routes(ApiId=api)["Items"], (
            "the account creates the routes, so create_routes can be removed"
        )
        formation = self.account.client("cloudformation")
        processed = formation.get_template(StackName=NAME, TemplateStage="Processed")[
            "TemplateBody"
        ]
        processed = json.loads(processed) if isinstance(processed, str) else processed
        function = self.account.client("lambda").get_function(
            FunctionName=self.outputs["ApiFunction"]
        )["Configuration"]
        for path, methods in processed["Resources"]["Api"]["Properties"]["Body"]["paths"].items():
            for method, operation in methods.items():
                assert (path, method) == ("$default", "x-amazon-apigateway-any-method"), (
                    "expected only the default route"
                )
                described = operation["x-amazon-apigateway-integration"]
                assert "${ApiFunction.Arn}" in json.dumps(described["uri"]), described
                integration = gateway.create_integration(
                    ApiId=api,
                    IntegrationType=described["type"].upper(),
                    IntegrationMethod=described["httpMethod"],
                    IntegrationUri=function["FunctionArn"],
                    PayloadFormatVersion=described["payloadFormatVersion"],
                )
                gateway.create_route(
                    ApiId=api, RouteKey=path, Target=f"integrations/{integration['IntegrationId']}"
                )
