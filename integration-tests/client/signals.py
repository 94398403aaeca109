"""A client that knows the agent's socket and the names it asks for; all types come from the agent by reflection.

    signals.py SOCKET [PAGE_SIZE]

Prints one JSON object: "health", the state of every service of Portcullis, and "signals", all of them, oldest first, in
protobuf's own JSON form with every field that has no presence.
"""

import json
import sys

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

PACKAGE = "portcullis.v1."
SECONDS = 30


def connect(socket):
    # gRPC's C core would send the socket's path as the authority, which the agent's HTTP/2 library refuses.
    return grpc.insecure_channel(f"unix:{socket}", options=[("grpc.default_authority", "localhost")])


class Client:
    def __init__(self, channel):
        self.channel = channel
        self.reflection = ProtoReflectionDescriptorDatabase(channel)
        self.pool = DescriptorPool(self.reflection)

    def call(self, service, method, /, **fields):
        types = self.pool.FindServiceByName(service).FindMethodByName(method)
        call = self.channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=GetMessageClass(types.input_type).SerializeToString,
            response_deserializer=GetMessageClass(types.output_type).FromString,
        )
        response = call(GetMessageClass(types.input_type)(**fields), timeout=SECONDS)
        return MessageToDict(response, always_print_fields_with_no_presence=True)

    def stream(self, service, method, /, **fields):
        types = self.pool.FindServiceByName(service).FindMethodByName(method)
        call = self.channel.unary_stream(
            f"/{service}/{method}",
            request_serializer=GetMessageClass(types.input_type).SerializeToString,
            response_deserializer=GetMessageClass(types.output_type).FromString,
        )
        return call(GetMessageClass(types.input_type)(**fields))

    def services(self):
        return [name for name in self.reflection.get_services() if name.startswith(PACKAGE)]

    def health(self, service):
        return self.call("grpc.health.v1.Health", "Check", service=service)["status"]

    def signals(self, page_size):
        token = ""
        while True:
            page = self.call(
                f"{PACKAGE}SignalService", "ListSignals", oldest_first=True, page_size=page_size, page_token=token
            )
            yield from page["signals"]
            token = page["nextPageToken"]
            if not token:
                return


def main(socket, page_size="0"):
    with connect(socket) as channel:
        client = Client(channel)
        found = {
            "health": {service: client.health(service) for service in client.services()},
            "signals": list(client.signals(int(page_size))),
        }
    json.dump(found, sys.stdout, indent=2)


if __name__ == "__main__":
    main(*sys.argv[1:])
