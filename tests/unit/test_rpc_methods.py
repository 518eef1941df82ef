"""The RPCs as the descriptor has them: a new one needs a line in proto/ and a method of its servicer, nothing else."""

import pytest

from tracekit.rpc import messages
from tracekit.rpc.methods import CONTROL, RECORDER, SERVICES
from tracekitd.calls import handlers
from tracekitd.service import ControlService, RecorderService

SERVICERS = {RECORDER: RecorderService, CONTROL: ControlService}


def test_paths_messages_and_directions_are_those_of_proto():
    assert SERVICES.keys() == SERVICERS.keys()
    record, mark = SERVICES[RECORDER]["Record"], SERVICES[CONTROL]["MarkWeights"]
    assert record.path == "/tracekit.v1.Recorder/Record" and record.streams
    assert record.request is messages.Frame and record.reply is messages.Ack
    assert mark.path == "/tracekit.v1.Control/MarkWeights" and not mark.streams
    assert mark.request is messages.MarkWeightsRequest and mark.reply is messages.MarkWeightsReply


@pytest.mark.parametrize("service", SERVICES)
def test_every_rpc_has_its_handler_in_the_daemon(service):
    for method in SERVICES[service].values():
        assert callable(getattr(SERVICERS[service], method.handler_name))


def test_a_servicer_without_one_is_found_when_the_daemon_starts():
    with pytest.raises(AttributeError, match="describe"):
        handlers({CONTROL: object()}, lambda: True)
