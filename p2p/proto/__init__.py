"""Messages of the wire format, generated from the `.proto` files beside this one.

After a change of a `.proto` file, from the repository's root, with the grpcio-tools release named here: older
generated code runs on newer protobuf runtimes, never the other way, so the generator stays at the lower bound of
the `protobuf` dependency.

    pip install grpcio-tools==1.65.5
    python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. p2p/proto/*.proto
"""
