"""Archives: the files of a snapshot in one file, with a manifest, and out of it again.

An archive comes from strangers: what is in it is read by `vmgr.archive.porter`, a process of its
own, which knows which members there may be and believes nothing else.
"""
