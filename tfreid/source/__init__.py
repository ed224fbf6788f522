"""What can be searched, whatever it is: the protocol, its options, and its answers. Floor 2.

An exported model, an index and a served model are each a `Source`. Who asks one of them asks it by
this protocol, and never which of them it is. `tfreid.search.load` opens them.
"""
