"""Let a torchvision that was built for CUDA be imported beside a CPU torch.

Its compiled operators cannot load there, which torchvision survives, but it then registers shape functions for two operators that do not
exist. Declaring their schemas first is enough; nothing here ever calls them. Costs nothing where torchvision is never imported.
"""

import sys


class _BeforeTorchvision:
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.library = torch.library.Library("torchvision", "FRAGMENT")
            for operator in ("nms", "qnms"):
                self.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _BeforeTorchvision.keep_alive = self


sys.meta_path.insert(0, _BeforeTorchvision())
