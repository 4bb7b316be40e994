// Prints arrays of a store as JSON: node read.mjs STORE PATH... where STORE is a folder or an
// address, and PATH may end in [start:stop]. 64-bit integers are printed as text, digit by digit.
import * as zarr from "zarrita";
import { FetchStore, FileSystemStore } from "@zarrita/storage";

const [where, ...paths] = process.argv.slice(2);
const store = where.includes("://") ? new FetchStore(where, { useSuffixRequest: true }) : new FileSystemStore(where);
const root = zarr.root(store);
const plain = (value) => (typeof value === "bigint" ? value.toString() : value);

const found = {};
for (const text of paths) {
  const [, path, start, stop] = text.match(/^([^[]+)(?:\[(\d+):(\d+)\])?$/);
  const array = await zarr.open.v3(root.resolve(path), { kind: "array" });
  const selection = start === undefined ? null : [zarr.slice(Number(start), Number(stop))];
  const read = await zarr.get(array, selection);
  // a scalar is given as it is
  const scalar = read === null || typeof read !== "object" || read.data === undefined;
  const values = scalar ? [read] : Array.from(read.data);
  found[text] = {
    type: array.dtype,
    shape: scalar ? [] : read.shape,
    dims: array.dimensionNames ?? [],
    bigint: values.some((value) => typeof value === "bigint"),
    values: values.map(plain),
  };
}
const group = await zarr.open.v3(root, { kind: "group" });
console.log(JSON.stringify({ attrs: group.attrs, arrays: found }));
