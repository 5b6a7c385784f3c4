// Seeds that long work hangs on (fine-tunes, photo twins, stages) start with their control at "fixed", so that a second
// Run resumes the first. Saved workflows keep what they say.
import { app } from "../../scripts/app.js";

app.registerExtension({
    name: "atelier.fixedSeeds",
    nodeCreated(node) {
        const inputs = node.constructor.nodeData?.input ?? {};
        const declared = { ...inputs.required, ...inputs.optional };
        for (const widget of node.widgets ?? []) {
            if (!declared[widget.name]?.[1]?.atelier_fixed_seed) continue;
            const control = widget.linkedWidgets?.find((w) => w.name?.startsWith("control_"));
            if (control) control.value = "fixed";
        }
    },
});
