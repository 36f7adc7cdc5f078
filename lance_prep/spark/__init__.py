"""Spark DataFrames to and from Lance.

from lance_prep.spark import push_parquet, read_lance, write_lance

df = spark.read.parquet("hdfs:///text").where("lang = 'en'")
write_lance(df, "s3://bucket/text.lance", tokenizer="openai-community/gpt2", layout="blocks", block_size=2048)
read_lance(spark, "s3://bucket/text.lance").select("num_tokens").summary().show()
push_parquet(df, "hf://datasets/owner/text", private=True)
"""

from typing import TYPE_CHECKING

from lance_prep.process import lazy_exports

if TYPE_CHECKING:
    from lance_prep.engine import SparkEngine
    from lance_prep.spark.push import ParquetPush, push_parquet
    from lance_prep.spark.read import read_lance
    from lance_prep.spark.write import write_lance

__getattr__, __dir__, __all__ = lazy_exports(__name__, extra="spark")
