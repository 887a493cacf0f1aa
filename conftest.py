"""Where there is no C++ compiler, tests that need Inductor are skipped, and say so; and a way to test as on other interpreters."""

from collections.abc import Iterator

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """An option of the whole run."""
    text = "test as on an interpreter whose dictionaries have no stamps: Dynamo keeps its own guards (in this process, not in children)"
    parser.addoption("--without-stamps", action="store_true", help=text)


def pytest_configure(config: pytest.Config) -> None:
    """What the option says."""
    if config.getoption("--without-stamps"):
        from sparsec.doors.torch_compile import stamps

        stamps.can_read = lambda: False  # type: ignore[assignment]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """A failure that Inductor blames on a missing compiler becomes a skip with that reason."""
    report = yield
    if call.excinfo is not None and any(type(e).__name__ == "InvalidCxxCompiler" for e in _chain(call.excinfo.value)):
        report.outcome = "skipped"
        report.longrepr = (str(item.path), 0, "Skipped: Inductor found no C++ compiler; install g++ or set CXX")
    return report
