import pytest

from tests.argo_server.expressions import Depends, ExpressionError, evaluate, substitute

SCOPE = {
    "tasks.a-b.outputs.parameters.c": "1", "tasks.d.outputs.parameters.e": "2",
    "lastRetry.exitCode": "137", "lastRetry.status": "Failed", "retries": "1",
    "lastRetry.message": "main: OOMKilled (exit code 137)",
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("asInt(lastRetry.exitCode) in [75, 137]", True),
        ("asInt(lastRetry.exitCode) not in [-1, 75] && !(lastRetry.status == 'Error')", True),
        ("lastRetry.exitCode == 137", False),  # text is no number
        ('lastRetry.exitCode == "137"', True),
        ("lastRetry.message matches 'OOM|evicted' || false", True),
        ("asInt(retries) == 0 ? 8192 : asInt(retries) == 1 ? 16384 : 32768", 16384),
        ("1 + 2 * 3 - 4 / 2", 5.0),
        ("2 ** 3 ** 2", 512.0),
        ("-7 % 4", -3),
        ("sprig.int('x') < 1 and lastRetry.status startsWith 'F'", True),
        ("[4, 8, 16][asInt(retries)]", 8),
        ("1 == true", False),
        ("tasks['a-b'].outputs.parameters['c'] + tasks.d.outputs.parameters.e", "12"),
    ],
)
def test_values(text, value):
    found = evaluate(text, SCOPE)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "text",
    ["lastRetry.exitCode > 1", "asInt('x')", "1 +", "(1", "1 2", "a = b", "nothing", "f(1)",
     "!1", "1 && true", "'a' - 1", ""],
)  # fmt: skip
def test_mistakes(text):
    with pytest.raises(ExpressionError):
        evaluate(text, SCOPE)


def test_substitution():
    template = {
        "a": ["{{inputs.parameters.x}} {{ cell }}", 1],
        "b": "{{=8 * 2 ** asInt(retries)}}Gi",
    }
    assert substitute(template, {"inputs.parameters.x": "1"}) == {
        "a": ["1 {{ cell }}", 1], "b": template["b"]  # has no value yet
    }  # fmt: skip
    assert substitute(template["b"], {"retries": "1"}) == "16Gi"
    assert substitute("{{=1 / 4}}{{='x'}}{{=true}}", {}) == "0.25xtrue"


def test_depends():
    depends = Depends("a-b && (c.Succeeded || c.Failed) && !d.Errored")
    assert depends.tasks == {"a-b", "c", "d"}
    phases = {"a-b": "Succeeded", "c": "Failed", "d": "Omitted"}
    assert depends.holds(phases)
    assert not depends.holds({**phases, "d": "Error"})
    assert not depends.holds({**phases, "a-b": "Failed"})
    assert Depends("a").holds({"a": "Skipped"})
    assert not Depends("a").holds({"a": "Omitted"})
    for wrong in ("a &&", "(a", "a b", "a.Nonsense", "&& a", "a | b"):
        with pytest.raises(ExpressionError):
            Depends(wrong)
