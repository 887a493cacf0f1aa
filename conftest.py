"""Where there is no C++ compiler, tests that need Inductor are skipped, and say so."""

from collections.abc import Iterator

import pytest


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
