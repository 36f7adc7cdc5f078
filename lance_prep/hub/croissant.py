"""The description of pushed datasets in Croissant 1.0, the format of mlcommons for machine-learning datasets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from lance_prep.hub.contents import PushedDataset

CROISSANT = "croissant.json"
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def croissant(name: str, page: str, datasets: Sequence[PushedDataset]) -> bytes:
    """Return the Croissant file of a repository as JSON-LD.

    Args:
        name: of the repository.
        page: URL of the repository.
        datasets: of this push.
    """
    described = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name.rpartition("/")[2],
        "description": _description(datasets),
        "url": page,
        "creator": {"@type": "sc:Organization", "name": name.partition("/")[0]},
        "datePublished": max(one.opened.metadata.build.created for one in datasets)[:10],
        "version": f"{datasets[0].opened.number}.0.0",
        "distribution": [_repository(page), *map(_files, datasets)],
        "recordSet": [_record_set(one) for one in datasets],
    }
    return (json.dumps(described, indent=2, ensure_ascii=False) + "\n").encode()


def _description(datasets: Sequence[PushedDataset]) -> str:
    rows = sum(one.opened.metadata.rows for one in datasets)
    tokens = sum(one.opened.metadata.tokens for one in datasets)
    what = f"{rows:,} rows" + (f", {tokens:,} tokens" if tokens else "")
    named = (f"{one.path} (content hash {one.opened.metadata.content_hash})" for one in datasets)
    return f"{what} as Lance datasets: {', '.join(named)}."


def _repository(page: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": "repo",
        "name": "repo",
        "description": "The git repository on the Hub.",
        "contentUrl": page,
        "encodingFormat": "git+https",
        # A repository has no hash; Croissant asks for one (mlcommons/croissant#80).
        "sha256": "https://github.com/mlcommons/croissant/issues/80",
    }


def _files(one: PushedDataset) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": f"files-{one.config}-{one.split}",
        "name": f"files-{one.config}-{one.split}",
        "description": f"Data files of version {one.opened.number} of the Lance dataset {one.path}.",
        "containedIn": {"@id": "repo"},
        "encodingFormat": "application/vnd.lance",
        "includes": f"{one.path}/data/*.lance",
    }


def _record_set(one: PushedDataset) -> dict[str, Any]:
    name = f"{one.config}-{one.split}"
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": f"{one.opened.metadata.rows:,} rows, split {one.split} of {one.config}.",
        "field": [_field(name, one, field) for field in one.opened.dataset.schema],
    }


def _field(record_set: str, one: PushedDataset, field: pa.Field) -> dict[str, Any]:
    kind, repeated = _type(field.type)
    return {
        "@type": "cr:Field",
        "@id": f"{record_set}/{field.name}",
        "name": f"{record_set}/{field.name}",
        "description": f"Column {field.name}, {field.type} in Arrow.",
        "dataType": kind,
        **({"repeated": True} if repeated else {}),
        "source": {"fileSet": {"@id": f"files-{one.config}-{one.split}"}, "extract": {"column": field.name}},
    }


def _type(kind: pa.DataType) -> tuple[str, bool]:
    """Return the data type of Croissant, and whether a row has a list of it."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _type(kind.value_type)[0], True
    for check, name in (
        (pa.types.is_boolean, "sc:Boolean"),
        (pa.types.is_integer, "sc:Integer"),
        (pa.types.is_floating, "sc:Float"),
        (pa.types.is_temporal, "sc:DateTime"),
    ):
        if check(kind):
            return name, False
    return "sc:Text", False
