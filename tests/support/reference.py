"""Paddle Serving's messages as Google's protobuf runtime makes them, to compare with.

Built from the field numbers in the design page, by a way independent of edl.serving.
"""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_F = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "int64": _F.TYPE_INT64,
    "int32": _F.TYPE_INT32,
    "uint32": _F.TYPE_UINT32,
    "float": _F.TYPE_FLOAT,
    "double": _F.TYPE_DOUBLE,
    "bool": _F.TYPE_BOOL,
    "string": _F.TYPE_STRING,
    "bytes": _F.TYPE_BYTES,
    "uint64": _F.TYPE_UINT64,
}
_MESSAGES = {
    "Tensor": (
        "1* int64 int64_data, 2* float float_data, 3* int32 int_data, 4* double float64_data, "
        "5* uint32 uint32_data, 6* bool bool_data, 9* string data, 10 int32 elem_type, "
        "11* int32 shape, 12* int32 lod, 13 string name, 14 string alias_name, "
        "15 bytes tensor_content"
    ),
    "Request": (
        "1* Tensor tensor, 2* string fetch_var_names, 3 bool profile_server, 4 uint64 log_id"
    ),
    "ModelOutput": "1* Tensor tensor, 2 string engine_name",
    "PipelineTensor": (
        "1* int64 int64_data, 2* float float_data, 3* int32 int_data, 4* double float64_data, "
        "5* uint32 uint32_data, 6* bool bool_data, 9* string str_data, 10 bytes byte_data, "
        "20 int32 elem_type, 21* int32 shape, 22* int32 lod, 23 string name"
    ),
    "PipelineRequest": (
        "1* string key, 2* string value, 3* PipelineTensor tensors, 4 string name, "
        "5 string method, 6 int64 logid, 7 string clientip"
    ),
    "PipelineResponse": (
        "1 int32 err_no, 2 string err_msg, 3* string key, 4* string value, "
        "5* PipelineTensor tensors"
    ),
    "Response": (
        "1* ModelOutput outputs, 2* int64 profile_time, 3 bool profile_server, 4 uint64 log_id, "
        "5 int32 err_no, 6 string err_msg"
    ),
}


def _build():
    file = descriptor_pb2.FileDescriptorProto(
        name="reference.proto", syntax="proto3", package="ref"
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for text in fields.split(", "):
            number, kind, field_name = text.split()
            field = message.field.add(name=field_name, number=int(number.rstrip("*")))
            field.label = _F.LABEL_REPEATED if number.endswith("*") else _F.LABEL_OPTIONAL
            if kind in _SCALARS:
                field.type = _SCALARS[kind]
            else:
                field.type, field.type_name = _F.TYPE_MESSAGE, f".ref.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return [
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"ref.{name}"))
        for name in _MESSAGES
    ]


(
    TENSOR,
    Request,
    ModelOutput,
    PipelineTensor,
    PipelineRequest,
    PipelineResponse,
    Response,
) = _build()
