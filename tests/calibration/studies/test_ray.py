"""The engine ``ray``, on real clusters of this machine: the same metrics as ``local``, and a node that goes away."""

import pytest

from calibration import study
from tests.calibration.studies import tiny

ray = pytest.importorskip("ray", reason="Ray is not installed: make test-studies")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # Ray's own warnings are not ours to fix


@pytest.fixture(scope="module")
def local(folder, tmp_path_factory):
    """The scores of the engine ``local``."""
    store = tmp_path_factory.mktemp("local") / "s.sqlite"
    study(tiny.config(folder), store=store, workers=2)
    return tiny.scores(store)


def test_a_cluster_of_its_own(folder, tmp_path, local):
    study(tiny.config(folder), store=tmp_path / "s.sqlite", engine="ray", workers=2)
    assert tiny.scores(tmp_path / "s.sqlite") == local
    assert not ray.is_initialized()


def test_a_node_that_is_killed(folder, tmp_path, local):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    killed = []

    def kill(state):
        if state.done >= 8 and not killed:
            killed.append(state.done)
            cluster.remove_node(second, allow_graceful=False)

    try:
        ray.init(address=cluster.address, log_to_driver=False)
        assert ray.cluster_resources()["CPU"] == 2
        found = study(tiny.config(folder), store=tmp_path / "s.sqlite", engine="ray", progress=kill)
        assert ray.is_initialized()  # a cluster that was there stays
        assert ray.cluster_resources()["CPU"] == 1
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert killed
    assert killed[0] < found.progress.total
    assert (found.progress.failed, found.progress.pending) == (0, 0)
    assert tiny.scores(tmp_path / "s.sqlite") == local
