"""The stack as `sam build` left it, and what has to be done to it before an emulated account takes it."""

import copy
import json
import subprocess

import yaml

from emulators import BUILT, ROOT
from support import environment

TEMPLATE = yaml.safe_load((BUILT / ".aws-sam/build/template.yaml").read_text())
NAME = "nano-webhooks"


def functions():
    """The template's functions with their properties, those of Globals among them."""
    common = TEMPLATE["Globals"]["Function"]
    return {
        name: common | resource["Properties"]
        for name, resource in TEMPLATE["Resources"].items()
        if resource["Type"] == "AWS::Serverless::Function"
    }


def create_tables(db, prefix):
    """The template's tables, each under its logical id behind a prefix, as far as an engine can have them."""
    for name, resource in TEMPLATE["Resources"].items():
        if resource["Type"] == "AWS::DynamoDB::Table":
            shape = only(resource["Properties"], "BillingMode", "AttributeDefinitions", "KeySchema")
            if indexes := resource["Properties"].get("GlobalSecondaryIndexes"):
                shape["GlobalSecondaryIndexes"] = [only(index, "IndexName", "KeySchema", "Projection") for index in indexes]
            db.create_table(TableName=prefix + name, **shape)


def only(properties, *names):
    return {name: value for name, value in properties.items() if name in names}


# --- what the emulated account does otherwise than AWS


def numbers(template):
    """CloudFormation hands a parameter of type Number on as a number; the account hands on text, and then cannot compare."""
    parameters = {name: of["Default"] for name, of in template["Parameters"].items() if of["Type"] == "Number"}
    changed = 0
    for part in parts(template["Resources"]):
        for name, value in part.items():
            if isinstance(value, dict) and value.get("Ref") in parameters:
                part[name] = parameters[value["Ref"]]
                changed += 1
    return changed


def key_contexts(template):
    """The account does not know the condition key `kms:EncryptionContext`, and allows nothing that depends on it."""
    changed = 0
    for statement in statements(template):
        if "kms:EncryptionContext" in json.dumps(statement.get("Condition")):
            del statement["Condition"]
            changed += 1
    return changed


def batches_of_messages(template):
    """To AWS a batch of messages is as many times `sqs:SendMessage`; the account asks for a permission that AWS has not."""
    changed = 0
    for statement in statements(template):
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        if statement["Effect"] == "Allow" and "sqs:SendMessage" in actions:
            statement["Action"] = [*actions, "sqs:SendMessageBatch"]
            changed += 1
    return changed


def queries(template):
    """The account has no saved queries of CloudWatch Logs. Nothing depends on them: a person asks in the console."""
    names = [name for name, of in template["Resources"].items() if of["Type"] == "AWS::Logs::QueryDefinition"]
    for name in names:
        del template["Resources"][name]
    return len(names)


def metric_math(template):
    """The account knows no metric math: an alarm that has some watches the first of its metrics alone."""
    alarms = [of["Properties"] for of in template["Resources"].values() if of["Type"] == "AWS::CloudWatch::Alarm"]
    math = [properties for properties in alarms if "Metrics" in properties]
    for properties in math:
        watched = next(metric["MetricStat"] for metric in properties.pop("Metrics") if "MetricStat" in metric)
        properties |= watched["Metric"] | {"Period": watched["Period"], "Statistic": watched["Stat"]}
    return len(math)


def joined_lists(template):
    """Conditions cannot join a list in the account, to which the parameter is the text that it was given as."""
    changed = 0
    for part in parts(template["Conditions"]):
        for value in part.values():
            for place, operand in enumerate(value) if isinstance(value, list) else ():
                if isinstance(operand, dict) and "Fn::Join" in operand:
                    _, value[place] = operand["Fn::Join"]
                    changed += 1
    return changed


CHANGES = [queries, metric_math, joined_lists, numbers, key_contexts, batches_of_messages]


def emulated():
    """The built template with these changes, and no other. One that changes nothing is an error: it could go."""
    template = copy.deepcopy(TEMPLATE)
    for change in CHANGES:
        assert change(template), f"the template has nothing in it for `{change.__name__}` to change"
    return template


def statements(template):
    """All statements of policies."""
    return [part for part in parts(template["Resources"]) if {"Effect", "Action"} <= set(part)]


def parts(value):
    """All mappings in a value, at any depth."""
    if isinstance(value, list):
        return [part for each in value for part in parts(each)]
    return [value, *parts(list(value.values()))] if isinstance(value, dict) else []


# --- what an operator does


def sam(account, *args):
    done = subprocess.run(
        ["sam", *args],
        cwd=BUILT,
        env=environment(ROOT | {"AWS_ENDPOINT_URL": account.url, "SAM_CLI_TELEMETRY": "0", "SAM_CLI_POLL_DELAY": "0.2"}),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"sam {args}: exit {done.returncode}\n{done.stdout}\n{done.stderr}\n{account.log_text()}"


class Stack:
    """The stack, deployed with the settings of samconfig.toml."""

    def __init__(self, account, **parameters):
        self.account = account
        self.deploy(parameters)
        self.make_routes()

    def deploy(self, parameters):
        changed = BUILT / ".aws-sam/build/emulated.yaml"
        changed.write_text(yaml.safe_dump(emulated(), sort_keys=False))
        sam(
            self.account,
            *("deploy", "--template-file", str(changed), "--config-file", str(BUILT / "samconfig.toml")),
            *("--no-confirm-changeset", "--no-progressbar", "--parameter-overrides"),
            *(f"{name}={value}" for name, value in parameters.items()),
        )
        (described,) = self.account.client("cloudformation").describe_stacks(StackName=NAME)["Stacks"]
        assert described["StackStatus"] in ("CREATE_COMPLETE", "UPDATE_COMPLETE"), described
        self.outputs = {output["OutputKey"]: output["OutputValue"] for output in described["Outputs"]}

    def resources(self):
        """Logical to physical ids."""
        found = self.account.client("cloudformation").describe_stack_resources(StackName=NAME)["StackResources"]
        return {resource["LogicalResourceId"]: resource["PhysicalResourceId"] for resource in found}

    def make_routes(self):
        """API Gateway makes its routes from the description of the API that SAM put into the stack; the account does not."""
        gateway, api = self.account.client("apigatewayv2"), self.resources()["Api"]
        assert not gateway.get_routes(ApiId=api)["Items"], "the account makes the routes by now: this need not be done"
        formation = self.account.client("cloudformation")
        processed = formation.get_template(StackName=NAME, TemplateStage="Processed")["TemplateBody"]
        processed = json.loads(processed) if isinstance(processed, str) else processed
        function = self.account.client("lambda").get_function(FunctionName=self.outputs["ApiFunction"])["Configuration"]
        for path, methods in processed["Resources"]["Api"]["Properties"]["Body"]["paths"].items():
            for method, operation in methods.items():
                assert (path, method) == ("$default", "x-amazon-apigateway-any-method"), "the only route there is"
                described = operation["x-amazon-apigateway-integration"]
                assert "${ApiFunction.Arn}" in json.dumps(described["uri"]), described
                made = gateway.create_integration(
                    ApiId=api,
                    IntegrationType=described["type"].upper(),
                    IntegrationMethod=described["httpMethod"],
                    IntegrationUri=function["FunctionArn"],
                    PayloadFormatVersion=described["payloadFormatVersion"],
                )
                gateway.create_route(ApiId=api, RouteKey=path, Target=f"integrations/{made['IntegrationId']}")
