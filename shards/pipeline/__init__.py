"""From manifests, or another set, to a shard set: the Ray pipeline and its commits."""
