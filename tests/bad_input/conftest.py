"""What every bad input owes its user: exit code 2, one message that names the fault and says what to do, nothing executed, no traceback."""

import pickle
import re

import pytest

from tuneleak.cli import main

# a message that tells what is wrong but not what to do about it is not finished
ADVICE = re.compile(
    r"\b(add|check|choose|collect|convert|copy|fetch|get|give|import|lower|make|mend|must|needs?|only|put|read|remove|rename|repair|run|save|train|"
    r"unpack|use|expected|Input should|known are|has to|listed?|not permitted|required)\b"
)


class Trace:
    """Pickles to something that writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def refused(tmp_path, capsys):
    """`refused(*argv, says=regex)`: run a verb in this process and hold its error against the rules of this folder; returns the message."""

    def run(*argv, says):
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in argv])
        printed = capsys.readouterr().err
        message = printed[printed.find("tuneleak: error: ") :]
        assert stopped.value.code == 2, printed
        assert message.startswith("tuneleak: error: ") and "Traceback" not in printed, printed
        assert re.search(says, message), message
        assert ADVICE.search(message), f"says nothing about what to do: {message}"
        assert len(message) < 2000, message
        assert not (tmp_path / "trace").exists(), "something of the input was executed"
        return message

    return run


@pytest.fixture
def payload(tmp_path):
    """The bytes of a pickle that leaves a trace, in <tmp_path>/trace, when it is loaded."""
    return pickle.dumps(Trace(tmp_path / "trace"))


def test_the_payload_does_what_it_is_for(tmp_path, payload):
    pickle.loads(payload).close()
    assert (tmp_path / "trace").exists()
